//! What is served while the store is read back: health and reflection. Calls that need the broker are told to come again.
//!
//! Invariant: opens once, and then for every connection, those that are there already included.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use futures_util::future::Either;
use http::{Request, Response};
use tonic::body::Body;
use tonic::service::Routes;
use tower::{Layer, Service};

use crate::engine::OpenProgress;

use super::{SERVED, status};

/// The gate of one door; clones are the same one. As a layer it stands before the routes that are served at once.
#[derive(Clone, Debug)]
pub(super) struct Gate {
    all: Arc<OnceLock<Routes>>,
    progress: OpenProgress,
}

impl Gate {
    /// A closed one.
    pub(super) fn new(progress: OpenProgress) -> Self {
        Self { all: Arc::default(), progress }
    }

    /// From now on everything is served by `all`. Does nothing the second time.
    pub(super) fn open(&self, all: Routes) {
        self.all.set(all.prepare()).ok();
    }
}

impl Layer<Routes> for Gate {
    type Service = Gated;

    fn layer(&self, early: Routes) -> Gated {
        Gated { gate: self.clone(), routes: early, is_open: false }
    }
}

/// The routes behind a gate, as one connection has them.
#[derive(Clone, Debug)]
pub(super) struct Gated {
    gate: Gate,
    /// Those that are served at once, or all.
    routes: Routes,
    is_open: bool,
}

impl Service<Request<Body>> for Gated {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future =
        Either<<Routes as Service<Request<Body>>>::Future, Ready<Result<Response<Body>, Infallible>>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // Routes are always ready.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        if !self.is_open {
            if let Some(all) = self.gate.all.get() {
                self.routes = all.clone();
                self.is_open = true;
            } else if needs_the_broker(request.uri().path()) {
                return Either::Right(ready(Ok(status::recovering(&self.gate.progress).into_http())));
            }
        }
        Either::Left(self.routes.call(request))
    }
}

fn needs_the_broker(path: &str) -> bool {
    let service = path.strip_prefix('/').and_then(|path| path.split('/').next());
    service.is_some_and(|service| SERVED.contains(&service))
}
