//! What dicts and iterators hold, for the stub: PyO3's own types do not say.

use std::convert::Infallible;

use pyo3::inspect::PyStaticExpr;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyIterator};
use pyo3::{type_hint_identifier, type_hint_subscript};

use crate::question::Question;

macro_rules! output {
    ($(#[$doc:meta])* $name:ident($target:ty): $hint:expr) => {
        $(#[$doc])*
        pub(crate) struct $name<'py>(pub(crate) Bound<'py, $target>);

        impl<'py> IntoPyObject<'py> for $name<'py> {
            type Target = $target;
            type Output = Bound<'py, $target>;
            type Error = Infallible;
            const OUTPUT_TYPE: PyStaticExpr = $hint;

            fn into_pyobject(self, _py: Python<'py>) -> Result<Self::Output, Self::Error> {
                Ok(self.0)
            }
        }
    };
}

output! {
    /// `dict[str, Any]`: what a JSON object becomes.
    JsonObject(PyDict): type_hint_subscript!(
        type_hint_identifier!("builtins", "dict"),
        type_hint_identifier!("builtins", "str"),
        type_hint_identifier!("typing", "Any")
    )
}

output! {
    /// `Iterator[Question]`.
    Questions(PyIterator): type_hint_subscript!(
        type_hint_identifier!("collections.abc", "Iterator"),
        <Question as IntoPyObject<'_>>::OUTPUT_TYPE
    )
}

/// `Iterable[Mapping[str, object]]`: rows of a table in memory.
pub(crate) struct Rows<'a, 'py>(pub(crate) Borrowed<'a, 'py, PyAny>);

impl<'a, 'py> FromPyObject<'a, 'py> for Rows<'a, 'py> {
    type Error = Infallible;
    const INPUT_TYPE: PyStaticExpr = type_hint_subscript!(
        type_hint_identifier!("collections.abc", "Iterable"),
        type_hint_subscript!(
            type_hint_identifier!("collections.abc", "Mapping"),
            type_hint_identifier!("builtins", "str"),
            type_hint_identifier!("builtins", "object")
        )
    );

    fn extract(object: Borrowed<'a, 'py, PyAny>) -> Result<Self, Self::Error> {
        Ok(Self(object))
    }
}
