//! Operations: the rows of the API's tables.
//!
//! A call is one row: its method, contract and handler. There is a table for each kind of call, so that a row can only
//! have a handler that takes what its path provides.

use std::pin::Pin;

use http::{Method, Response};

use super::problem::ApiResult;
use super::request::{QueryParameter, RequestHeader};
use crate::body::Body;

/// A response that is being computed.
pub(super) type Reply = Pin<Box<dyn Future<Output = ApiResult<Response<Body>>> + Send>>;

/// A path and its operations. `C` is the argument of their handlers.
#[derive(Debug)]
pub(super) struct Route<C: 'static> {
    /// The path after the base. A segment in braces is its parameter.
    pub(super) path: &'static str,
    pub(super) operations: &'static [Operation<C>],
}

/// A method at a path.
#[derive(Debug)]
pub(super) struct Operation<C: 'static> {
    pub(super) method: Method,
    pub(super) spec: Spec,
    pub(super) handler: fn(C) -> Reply,
}

/// The contract of an operation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spec {
    pub(super) id: &'static str,
    pub(super) summary: &'static str,
    pub(super) effect: Effect,
    pub(super) query: &'static [QueryParameter],
    pub(super) headers: &'static [RequestHeader],
    pub(super) body: RequestBody,
    pub(super) success: &'static [Success],
}

/// The effect of an operation. One that writes runs as a task that outlives its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    Reads,
    Writes,
}

/// The body of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RequestBody {
    None,
    /// JSON of this schema.
    Json(&'static str),
    /// The amount of an increment; without it, 1.
    Increment,
}

/// A status of success, and the schema of the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Success {
    /// 200 with JSON.
    Json(&'static str),
    /// 200 with a value, as JSON or as plain text.
    Value,
    /// 204.
    Empty,
}

impl<C> Route<C> {
    /// Returns the methods, for `Allow` (RFC 9110, section 10.2.1).
    pub(super) fn allow(&self) -> String {
        let methods = self.operations.iter().map(|operation| operation.method.as_str());
        let reads = self.operations.iter().any(|operation| operation.method == Method::GET);
        methods.chain(reads.then_some("HEAD")).collect::<Vec<_>>().join(", ")
    }
}
