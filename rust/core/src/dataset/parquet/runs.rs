//! The hybrid of runs and bit-packed groups in which parquet stores levels and places in a dictionary.

use super::thrift::variable_length;

/// Values in a bit-packed group.
const GROUP: u64 = 8;

/// Whether the first `values` values of `width` bits are said to take more bytes than there are.
///
/// The last group may be cut short, as some writers leave it. A whole group that is missing means that bytes were lost, and that
/// those which are there may be of something else; the crate would read them.
pub(super) fn overrun(data: &[u8], width: u8, values: u64) -> bool {
    let (mut rest, mut left) = (data, values);
    while left > 0
        && let Some((header, behind)) = variable_length(rest)
    {
        let (count, bytes) = if header & 1 == 1 {
            let groups = header >> 1;
            (groups.saturating_mul(GROUP), groups.saturating_mul(u64::from(width)))
        } else {
            (header >> 1, u64::from(width).div_ceil(8))
        };
        let missing = bytes.saturating_sub(behind.len() as u64);
        if missing > 0 && missing >= u64::from(width) {
            return true;
        }
        left = left.saturating_sub(count);
        rest = usize::try_from(bytes).ok().and_then(|bytes| behind.get(bytes..)).unwrap_or_default();
    }
    // That values are missing altogether, the crate sees.
    false
}

#[cfg(test)]
mod tests {
    use super::overrun;

    #[test]
    fn whole_groups_must_be_there_as_far_as_values_are_wanted() {
        // Five values of three bits in a group of eight.
        assert!(!overrun(&[3, 0x88, 0x46, 0], 3, 5));
        // Its last byte, which is only padding, may be missing.
        assert!(!overrun(&[3, 0x88, 0x46], 3, 5));
        assert!(overrun(&[5, 0x88, 0x46, 0], 3, 5));
        assert!(!overrun(&[5, 0x88, 0x46, 0, 1], 3, 5));
        assert!(overrun(&[21, 4], 1, 2));
    }

    #[test]
    fn what_stands_behind_the_values_is_nobodys() {
        // A run of six, and one behind it that is not needed.
        assert!(!overrun(&[12, 1, 255], 3, 6));
        assert!(overrun(&[12, 1, 21, 4], 3, 7));
        assert!(!overrun(&[12, 1, 21, 4], 3, 6));
    }

    #[test]
    fn no_bits_and_no_bytes_are_no_overrun() {
        assert!(!overrun(&[3], 0, 8));
        assert!(!overrun(&[], 3, 8));
        assert!(!overrun(&[0x80], 3, 8));
        assert!(overrun(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01], 64, 1));
    }
}
