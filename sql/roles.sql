-- Runs first: the roles, and the schema's safety.

-- A schema "quorum" that somebody prepared would give its owner power over what is created in it.
DO $$
BEGIN
    IF NOT (SELECT r.rolsuper FROM pg_catalog.pg_namespace AS n
            JOIN pg_catalog.pg_roles AS r ON r.oid = n.nspowner
            WHERE n.nspname = 'quorum') THEN
        RAISE EXCEPTION 'schema "quorum" exists and does not belong to a superuser'
            USING ERRCODE = 'insufficient_privilege',
                  HINT = 'Drop or rename the schema, then create the extension again.';
    END IF;
END
$$;

-- Roles belong to the whole server, so another database may have created them already.
DO $$
DECLARE
    role_name name;
BEGIN
    FOREACH role_name IN ARRAY ARRAY['quorum_admin', 'quorum_reader', 'quorum_follower'] LOOP
        IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles AS r WHERE r.rolname = role_name) THEN
            EXECUTE pg_catalog.format('CREATE ROLE %I NOLOGIN', role_name);
        END IF;
    END LOOP;
END
$$;
