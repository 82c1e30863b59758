//! Labels, and the series that their values make.

use std::marker::PhantomData;
use std::sync::Arc;

/// The labels of one series: names and values.
pub(super) type Labels = Vec<(&'static str, String)>;

/// A label whose values are known in advance, so that every series exists from the start.
pub(super) trait Label: Copy + 'static {
    const NAME: &'static str;
    /// In the order of [`Self::index`].
    const ALL: &'static [Self];

    fn value(self) -> &'static str;
    fn index(self) -> usize;

    /// Returns the label as a pair, for the key of a family.
    fn pair(self) -> (&'static str, String) {
        (Self::NAME, self.value().to_owned())
    }
}

/// Declares an enum that is a [`Label`], with the text of each value.
macro_rules! label {
    (
        $(#[$docs:meta])*
        $vis:vis $name:ident as $label:literal {
            $($(#[$value_docs:meta])* $variant:ident = $value:literal,)+
        }
    ) => {
        $(#[$docs])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        $vis enum $name {
            $($(#[$value_docs])* $variant,)+
        }

        impl $name {
            /// Returns the value of the label.
            pub(crate) fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $value,)+
                }
            }
        }

        impl $crate::metrics::label::Label for $name {
            const NAME: &'static str = $label;
            const ALL: &'static [Self] = &[$(Self::$variant,)+];

            fn value(self) -> &'static str {
                self.as_str()
            }

            fn index(self) -> usize {
                self as usize
            }
        }
    };
}
pub(super) use label;

/// One series for each value of a label. They are looked up once, when they are created.
#[derive(Debug)]
pub(super) struct ByLabel<L, M> {
    series: Arc<[M]>,
    label: PhantomData<L>,
}

impl<L, M> Clone for ByLabel<L, M> {
    fn clone(&self) -> Self {
        Self { series: Arc::clone(&self.series), label: PhantomData }
    }
}

impl<L: Label, M> ByLabel<L, M> {
    pub(super) fn new(series: impl Fn(L) -> M) -> Self {
        Self { series: L::ALL.iter().map(|value| series(*value)).collect(), label: PhantomData }
    }

    pub(super) fn get(&self, value: L) -> &M {
        self.series.get(value.index()).expect("every value has a series")
    }
}
