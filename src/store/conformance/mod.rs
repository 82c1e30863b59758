//! The suite that every store passes: the same random histories as the pure function, the same
//! answers. A store's tests call it by [`suite!`]; what it says there is the contract.

mod history;
mod model;
mod named;
mod seed;

use std::any::Any;
use std::pin::Pin;
use std::sync::Arc;

use tokio::runtime::{Builder, Runtime};

pub(crate) use history::random_histories_answer_as_the_pure_function;
pub(crate) use named::*;

use super::Store;
use crate::session::id::Id;

/// An empty store, and what must live as long as it (a directory, say).
pub(crate) struct Fresh {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) keep: Box<dyn Any>,
    /// Makes the record under an id unreadable, in the way of this number. `None` if nothing can be
    /// unreadable there.
    pub(crate) spoil: Option<Spoil>,
}

pub(crate) type Spoil = Box<dyn Fn(Id, usize) -> Pin<Box<dyn Future<Output = ()>>>>;

impl Fresh {
    pub(crate) fn new(store: impl Store + 'static, keep: impl Any) -> Self {
        Self { store: Arc::new(store), keep: Box::new(keep), spoil: None }
    }

    /// The same with a way to spoil its records.
    pub(crate) fn spoiled_by<F>(self, spoil: impl Fn(Id, usize) -> F + 'static) -> Self
    where
        F: Future<Output = ()> + 'static,
    {
        Self { spoil: Some(Box::new(move |id, way| Box::pin(spoil(id, way)))), ..self }
    }
}

/// A runtime as a worker has it.
pub(crate) fn runtime() -> Runtime {
    crate::log::begin_for_tests();
    Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// The suite's tests, over the stores that this function makes: `fn() -> Fresh`.
macro_rules! suite {
    ($fresh:expr) => {
        $crate::store::conformance::suite!($fresh;
            random_histories_answer_as_the_pure_function
            parallel_increments_all_count
            parallel_patches_of_different_keys_all_hold
            create_overwrites_neither_a_session_nor_a_marker
            what_is_over_is_swept_and_nothing_else
            every_byte_of_a_value_survives
            a_list_of_many_has_pages
            unreadable_records_break_no_list
            it_answers_pings_and_probes
        );
    };
    ($fresh:expr; $($test:ident)*) => {
        mod conformance {
            use super::*;

            $(#[test]
            fn $test() {
                $crate::store::conformance::$test($fresh);
            })*
        }
    };
}
pub(crate) use suite;
