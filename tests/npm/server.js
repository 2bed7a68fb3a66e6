// A server as those who use @mimik/cluster write it: the package, unmodified, behind a few routes. Arguments: its id, its
// port, the node that it registers at, where tokens come from, user, password, and the key for tokens of its own audience.
'use strict';

const http = require('http');
const oauthHelper = require('@mimik/oauth-helper');
const makeCluster = require('@mimik/cluster');

const [id, port, registry, issuer, user, password, key] = process.argv.slice(2);
const audience = 'shop';
const config = {
  serverSettings: {
    type: 'shop',
    id,
    port,
    basePath: '/api',
    ip: { local: '127.0.0.1', public: '127.0.0.1' },
    public: { protocol: 'http:', location: 'here' },
  },
  security: {
    server: { issuer, id: user, secret: password, audience, accessKey: key },
    generic: { key, audience },
  },
  dependencies: {
    mIT: { url: registry, audience: 'pgquorum' },
    shop: { url: `http://127.0.0.1:${port}/api`, audience },
  },
  cluster: { management: 'on', timeout: 5000 },
  registration: { retry: 300 },
};
const cluster = makeCluster(config);
const { apiTokenSecurityHelper } = oauthHelper(config);

const send = (response, status, body) => {
  response.writeHead(status, { 'content-type': 'application/json' });
  response.end(JSON.stringify(body));
};

// What the package expects of the framework in front of it.
const asOperation = (request, operationId, params) => {
  const values = Object.entries(params).map(([name, value]) => [name, { value }]);
  request.swagger = { params: Object.fromEntries(values), operation: { operationId } };
  return request;
};

const ofPeers = (request, response, then) => {
  apiTokenSecurityHelper(request, { flow: 'application' }, [], (error) => {
    if (error) send(response, 403, { statusCode: 403, title: 'Forbidden', message: error.message });
    else then();
  });
};

const answer = (request, response, body) => {
  const removed = /^\/api\/itResources\/([^/]+)\/servers\/([^/]+)$/.exec(request.url);
  if (request.method === 'POST' && request.url === '/api/itResources') {
    ofPeers(request, response, () => cluster.createItResource(
      asOperation(request, 'createItResource', { newItResource: body }),
      response,
    ));
  } else if (request.method === 'DELETE' && removed) {
    const [, itResource, serverId] = removed;
    ofPeers(request, response, () => cluster.deleteServer(
      asOperation(request, 'deleteServer', { id: itResource, serverId }),
      response,
    ));
  } else if (request.url === '/api/hello') {
    ofPeers(request, response, () => send(response, 200, { data: [id], server: { serverId: id } }));
  } else if (request.url === '/test/status') {
    send(response, 200, {
      registration: process.env.REGISTRATION_STATUS || null,
      servers: process.env.CLUSTER_STATUS_SERVERS || null,
    });
  } else if (request.url === '/test/hello-to-all') {
    cluster.rpCluster({ method: 'GET', url: '/hello', headers: {} })
      .then((result) => send(response, 200, result))
      .catch((error) => send(response, 500, { message: error.message }));
  } else if (request.url === '/test/unregister') {
    cluster.unRegister('end@0/now')
      .then((result) => send(response, 200, { ...result, errors: (result.errors || []).map(String) }))
      .catch((error) => send(response, 500, { message: error.message }));
  } else {
    send(response, 404, { message: `no ${request.method} ${request.url}` });
  }
};

http.createServer((request, response) => {
  let text = '';
  request.on('data', (chunk) => { text += chunk; });
  request.on('end', () => answer(request, response, text ? JSON.parse(text) : null));
}).listen(Number(port), '127.0.0.1', () => cluster.register('begin@0/now'));
