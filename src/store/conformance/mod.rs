//! The conformance suite, which every store passes: it plays random histories against the store and a
//! model, and tests concurrency, listing and sweeping. The tests of a store run it by [`suite!`].

mod history;
mod kit;
mod model;
mod named;
mod seed;

use std::any::Any;
use std::pin::Pin;
use std::sync::Arc;

use tokio::runtime::{Builder, Runtime};

pub(crate) use history::random_histories_match_the_model;
pub(crate) use kit::*;
pub(crate) use named::*;

use super::Store;
use crate::session::id::Id;

/// An empty store, and what must live as long as it, e.g. its directory.
pub(crate) struct Fresh {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) keep: Box<dyn Any>,
    /// Corrupts the record under an id, in the way of this number. `None` if records cannot be
    /// corrupt there.
    pub(crate) spoil: Option<Spoil>,
}

pub(crate) type Spoil = Box<dyn Fn(Id, usize) -> Pin<Box<dyn Future<Output = ()>>>>;

impl Fresh {
    pub(crate) fn new(store: impl Store + 'static, keep: impl Any) -> Self {
        Self { store: Arc::new(store), keep: Box::new(keep), spoil: None }
    }

    /// Adds a function that corrupts records.
    pub(crate) fn spoiled_by<F>(self, spoil: impl Fn(Id, usize) -> F + 'static) -> Self
    where
        F: Future<Output = ()> + 'static,
    {
        Self { spoil: Some(Box::new(move |id, way| Box::pin(spoil(id, way)))), ..self }
    }
}

/// Returns a runtime like that of a worker.
pub(crate) fn runtime() -> Runtime {
    crate::log::begin_for_tests();
    Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// Declares the tests of the suite over the stores that an `fn() -> Fresh` creates.
macro_rules! suite {
    ($fresh:expr $(, needs $program:literal)?) => {
        $crate::store::conformance::suite!(@tests $fresh; { $(needs!($program);)? }
            random_histories_match_the_model
            parallel_increments_are_all_counted
            parallel_patches_of_different_keys_are_all_kept
            parallel_merges_and_appends_are_all_kept
            first_of_two_refusals_is_reported
            writes_beside_new_ids_are_kept_or_refused
            create_never_overwrites
            sweep_removes_only_expired_entries
            values_are_stored_byte_for_byte
            long_lists_have_pages
            unreadable_records_do_not_break_lists
            answers_pings_and_probes
        );
    };
    ($fresh:expr; $($test:ident)*) => {
        $crate::store::conformance::suite!(@tests $fresh; {} $($test)*);
    };
    (@tests $fresh:expr; $needs:tt $($test:ident)*) => {
        mod conformance {
            use super::*;

            $(#[test]
            fn $test() {
                $needs
                $crate::store::conformance::$test($fresh);
            })*
        }
    };
}
pub(crate) use suite;
