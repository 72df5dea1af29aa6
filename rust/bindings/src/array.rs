//! numpy arrays that say in the stub what they hold; rust-numpy's own types come out as `Incomplete`.

use std::convert::Infallible;

use numpy::ndarray::{ArrayView, Dimension, Ix1, Ix2, Ix3};
use numpy::{Element, PyArray, PyReadonlyArray, PyReadwriteArray};
use pyo3::inspect::PyStaticExpr;
use pyo3::prelude::*;
use pyo3::{type_hint_identifier, type_hint_subscript};
use wmdp_core::Error;

use crate::error::to_py;

/// An element type and its numpy name.
pub(crate) trait NumpyScalar: Element {
    /// `numpy.typing.NDArray[...]` of it.
    const ARRAY: PyStaticExpr;
}

macro_rules! numpy_scalar {
    ($rust:ty, $name:literal) => {
        impl NumpyScalar for $rust {
            const ARRAY: PyStaticExpr = type_hint_subscript!(
                type_hint_identifier!("numpy.typing", "NDArray"),
                type_hint_identifier!("numpy", $name)
            );
        }
    };
}
numpy_scalar!(u16, "uint16");
numpy_scalar!(i64, "int64");
numpy_scalar!(f32, "float32");
numpy_scalar!(f64, "float64");
numpy_scalar!(bool, "bool_");

/// An array on its way to Python: what a function returns or a class holds.
pub(crate) struct Array<T, D>(Py<PyArray<T, D>>);

/// `Array` with one axis.
pub(crate) type Array1<T> = Array<T, Ix1>;
/// `Array` with two axes.
pub(crate) type Array2<T> = Array<T, Ix2>;

impl<T, D> From<Bound<'_, PyArray<T, D>>> for Array<T, D> {
    fn from(array: Bound<'_, PyArray<T, D>>) -> Self {
        Self(array.unbind())
    }
}

impl<'py, T: NumpyScalar, D: Dimension> IntoPyObject<'py> for Array<T, D> {
    type Target = PyArray<T, D>;
    type Output = Bound<'py, Self::Target>;
    type Error = Infallible;
    const OUTPUT_TYPE: PyStaticExpr = T::ARRAY;

    fn into_pyobject(self, py: Python<'py>) -> Result<Self::Output, Self::Error> {
        Ok(self.0.into_bound(py))
    }
}

impl<'py, T: NumpyScalar, D: Dimension> IntoPyObject<'py> for &Array<T, D> {
    type Target = PyArray<T, D>;
    type Output = Bound<'py, Self::Target>;
    type Error = Infallible;
    const OUTPUT_TYPE: PyStaticExpr = T::ARRAY;

    fn into_pyobject(self, py: Python<'py>) -> Result<Self::Output, Self::Error> {
        Ok(self.0.bind(py).clone())
    }
}

/// An array that came from Python, borrowed for the length of a call.
pub(crate) struct Readonly<'py, T: Element, D: Dimension>(PyReadonlyArray<'py, T, D>);

/// `Readonly` with one axis.
pub(crate) type Readonly1<'py, T> = Readonly<'py, T, Ix1>;
/// `Readonly` with two axes.
pub(crate) type Readonly2<'py, T> = Readonly<'py, T, Ix2>;
/// `Readonly` with three axes.
pub(crate) type Readonly3<'py, T> = Readonly<'py, T, Ix3>;

impl<T: Element, D: Dimension> Readonly<'_, T, D> {
    /// The array as ndarray sees it.
    pub(crate) fn view(&self) -> ArrayView<'_, T, D> {
        self.0.as_array()
    }
}

impl<'a, 'py, T: NumpyScalar + 'a, D: Dimension + 'a> FromPyObject<'a, 'py> for Readonly<'py, T, D> {
    type Error = PyErr;
    const INPUT_TYPE: PyStaticExpr = T::ARRAY;

    fn extract(object: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        object.extract().map(Self)
    }
}

/// An array that came from Python to be written, borrowed for the length of a call.
pub(crate) struct Writable<'py, T: Element, D: Dimension>(PyReadwriteArray<'py, T, D>);

/// `Writable` with one axis.
pub(crate) type Writable1<'py, T> = Writable<'py, T, Ix1>;
/// `Writable` with two axes.
pub(crate) type Writable2<'py, T> = Writable<'py, T, Ix2>;
/// `Writable` with three axes.
pub(crate) type Writable3<'py, T> = Writable<'py, T, Ix3>;

impl<T: Element, D: Dimension> Writable<'_, T, D> {
    /// Its numbers in the order of its axes.
    ///
    /// # Errors
    /// `ValueError` if they do not lie in memory so.
    pub(crate) fn slice(&mut self) -> PyResult<&mut [T]> {
        let strewn = || to_py(Error::InvalidArgument("an output must be contiguous".to_owned()));
        self.0.as_array_mut().into_slice().ok_or_else(strewn)
    }
}

impl<'a, 'py, T: NumpyScalar + 'a, D: Dimension + 'a> FromPyObject<'a, 'py> for Writable<'py, T, D> {
    type Error = PyErr;
    const INPUT_TYPE: PyStaticExpr = T::ARRAY;

    fn extract(object: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        object.extract().map(Self)
    }
}
