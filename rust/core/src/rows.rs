//! Rows of arrays.

use ndarray::ArrayView1;

/// A row as a slice; one that is strewn over memory is copied.
pub(crate) fn contiguous<'a>(row: &ArrayView1<'a, f32>, copy: &'a mut Vec<f32>) -> &'a [f32] {
    if let Some(row) = row.to_slice() {
        return row;
    }
    copy.clear();
    copy.extend(row);
    copy
}
