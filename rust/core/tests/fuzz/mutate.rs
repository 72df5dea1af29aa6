//! Inputs from inputs: bytes changed, cut, repeated and mixed, with the words and numbers that readers look for.

/// `SplitMix64` (Steele, Lea and Flood 2014): the same numbers everywhere.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        bits ^ (bits >> 31)
    }

    /// A number below `end`; 0 if that is 0.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        if end == 0 { 0 } else { (self.next() % end as u64) as usize }
    }

    pub(crate) fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }
}

/// Most bytes of a mutated input; seeds may be longer.
const LONGEST: usize = 32 << 10;

const NUMBERS: [&str; 16] = [
    "0",
    "1",
    "-1",
    "2",
    "26",
    "27",
    "127",
    "65536",
    "2147483647",
    "4294967295",
    "4294967296",
    "9223372036854775807",
    "18446744073709551615",
    "1e308",
    "-1e999",
    "0.5",
];

const INTEGERS: [u64; 8] = [0, 1, 0x7F, 0xFF, 0x7FFF_FFFF, 0xFFFF_FFFF, 0x7FFF_FFFF_FFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF];

/// One input made of another, in one to five steps.
pub(crate) fn mutated(random: &mut Random, input: &[u8], other: &[u8], words: &[&str]) -> Vec<u8> {
    let mut bytes = input[..input.len().min(LONGEST)].to_vec();
    for _ in 0..=random.below(5) {
        change(random, &mut bytes, other, words);
        bytes.truncate(LONGEST);
    }
    bytes
}

fn change(random: &mut Random, bytes: &mut Vec<u8>, other: &[u8], words: &[&str]) {
    let at = random.below(bytes.len() + 1);
    let (start, stop) = range(random, bytes.len());
    match random.below(11) {
        0 => overwrite(bytes, at, &[random.next() as u8]),
        1 => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << random.below(8);
            }
        }
        2 => drop(bytes.drain(start..stop)),
        3 => {
            let part = bytes[start..stop].to_vec();
            insert(bytes, at, &part);
        }
        4 => insert(bytes, at, random.pick(words).as_bytes()),
        5 => {
            let word = random.pick(words);
            let times = 1 << random.below(12);
            insert(bytes, at, word.repeat(times.min(LONGEST / word.len().max(1))).as_bytes());
        }
        6 => {
            let (start, stop) = range(random, other.len());
            insert(bytes, at, &other[start..stop]);
        }
        7 => {
            let number = random.pick(&NUMBERS);
            replace_number(bytes, at, number.as_bytes());
        }
        8 => {
            let number = random.pick(&INTEGERS).to_le_bytes();
            let width = 1 << random.below(4);
            overwrite(bytes, at, &number[..width]);
        }
        9 => bytes.truncate(at),
        _ => {
            // What stands between two quotes, or whatever the word's place is, by another word.
            bytes.drain(start..stop.min(start + 12));
            insert(bytes, start, random.pick(words).as_bytes());
        }
    }
}

/// A range of up to a few dozen bytes, at times of any length.
fn range(random: &mut Random, length: usize) -> (usize, usize) {
    let start = random.below(length + 1);
    let longest = if random.below(8) == 0 { length } else { 32 };
    (start, (start + random.below(longest + 1)).min(length))
}

fn insert(bytes: &mut Vec<u8>, at: usize, part: &[u8]) {
    let part = &part[..part.len().min(LONGEST)];
    bytes.splice(at..at, part.iter().copied());
}

fn overwrite(bytes: &mut [u8], at: usize, part: &[u8]) {
    for (byte, new) in bytes.iter_mut().skip(at).zip(part) {
        *byte = *new;
    }
}

/// Puts a number in the place of the first one in text behind `at`.
fn replace_number(bytes: &mut Vec<u8>, at: usize, number: &[u8]) {
    let Some(start) = bytes[at..].iter().position(u8::is_ascii_digit).map(|after| at + after) else { return };
    let digits = bytes[start..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    bytes.splice(start..start + digits, number.iter().copied());
}
