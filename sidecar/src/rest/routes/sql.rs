//! `GET /sql/readonly`: hashes of statements that are known to write nothing.

use crate::rest::api::{Api, read};
use crate::rest::refusal::respond;
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::reply::Response;

pub(in crate::rest) fn routes(api: &Api) -> BoxedFilter<(Response,)> {
    let api = api.clone();
    // No statement is learned yet, and an empty list is the safe answer: everything goes to the leader.
    warp::path!("sql" / "readonly")
        .and(read())
        .map(move || respond(api.member_view().map(|_| Vec::<String>::new())))
        .boxed()
}
