//! Rows of arrays.

use ndarray::ArrayView1;

/// A row as a slice; one that is strewn over memory is copied.
pub(crate) fn contiguous<'a, T: Copy>(row: &ArrayView1<'a, T>, copy: &'a mut Vec<T>) -> &'a [T] {
    if let Some(row) = row.to_slice() {
        return row;
    }
    copy.clear();
    copy.extend(row);
    copy
}
