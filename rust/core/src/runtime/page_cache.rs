//! Files and the operating system's page cache: the calls that are named differently on Linux, macOS and Windows.

use std::fs::File;
use std::io::Result;
use std::ops::Range;

#[cfg(target_os = "linux")]
const PAGE: u64 = 4096;

/// Says that a range will be read soon, where there is a way to say it. A hint: where it is not taken, reading does it.
#[cfg(target_os = "linux")]
pub(crate) fn will_need(file: &File, range: &Range<u64>) {
    use rustix::fs::{Advice, fadvise};
    let _ = fadvise(file, range.start, std::num::NonZero::new(range.end - range.start), Advice::WillNeed);
}

/// Without such a call, reading does it.
#[cfg(not(target_os = "linux"))]
pub(crate) fn will_need(_file: &File, _range: &Range<u64>) {}

/// Whether the first and last bytes of a range are in the page cache; no where the file system cannot tell.
#[cfg(target_os = "linux")]
pub(crate) fn holds(file: &File, range: &Range<u64>) -> bool {
    use rustix::io::{ReadWriteFlags, preadv2};
    let mut byte = [0];
    [range.start, (range.end - 1).max(range.start) / PAGE * PAGE].into_iter().all(|place| {
        let place = place.max(range.start);
        let read = preadv2(file, &mut [std::io::IoSliceMut::new(&mut byte)], place, ReadWriteFlags::NOWAIT);
        matches!(read, Ok(1))
    })
}

/// No: only Linux has a read that fails instead of waiting for the disk.
#[cfg(not(target_os = "linux"))]
pub(crate) fn holds(_file: &File, _range: &Range<u64>) -> bool {
    false
}

/// Fills a buffer with what begins at an offset, wherever other threads read.
#[cfg(unix)]
pub(crate) fn read_exact_at(file: &File, buffer: &mut [u8], offset: u64) -> Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buffer, offset)
}

/// Fills a buffer with what begins at an offset, wherever other threads read.
#[cfg(windows)]
pub(crate) fn read_exact_at(file: &File, mut buffer: &mut [u8], mut offset: u64) -> Result<()> {
    use std::io::ErrorKind;
    while !buffer.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, buffer, offset) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                buffer = &mut buffer[count..];
                offset += count as u64;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
