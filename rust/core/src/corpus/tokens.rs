//! The documents of a corpus as token ids, cut on the right as Hugging Face's tokenizers do it: special tokens always stay.
//!
//! Documents are read some at a time, and tokenized in parallel. Only as much of a document is tokenized as is kept, where the
//! tokenizer's own description proves that the rest does not matter ([`crate::tokens::boundary`]). Some documents of every portion are also
//! tokenized whole by the reference; if one token differs, the corpus is read again in the next slower way.

use std::path::Path;

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::{ReadOptions, for_each_document, require_memory};
use crate::error::{Error, Result};
use crate::runtime::parallel::{Cancel, install};
use crate::tokens::request::{DISAGREES, Encoding};
use crate::tokens::tokenizer::{Engine, Tokenizer};

/// Documents, and bytes of text, that are read before they are tokenized.
const PORTION: (usize, usize) = (512, 8 << 20);
/// Documents of a portion on which ways of tokenizing are compared: half of them spread evenly, half the most unusual.
const PROBES: usize = 8;
/// Bytes of a document that are compared.
const PROBE_BYTES: usize = 8 << 10;
/// Bytes that are tokenized at first for each token wanted. English text has four to five.
const BYTES_PER_TOKEN: usize = 6;

const HASH_HEADER: &str = "wmdp-fast corpus 1\n";

/// A tokenized corpus.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedCorpus {
    /// Token ids of all documents, one after another.
    pub tokens: Vec<i64>,
    /// For each document where its tokens begin, then their number.
    pub offsets: Vec<i64>,
    /// SHA-256 over the documents' texts, in hexadecimal digits.
    pub content_hash: String,
    /// How the tokens were made.
    pub encoding: Encoding,
}

/// Reads and tokenizes the documents of files.
///
/// Every document gets the tokenizer's special tokens. Documents of more than `max_length` tokens, those included, are cut on the
/// right.
///
/// # Errors
/// As [`for_each_document`]; [`Error::Tokenizer`] if a text cannot be tokenized, [`Error::InvalidArgument`] if `max_length` leaves
/// no room for text or the tokens take too much memory.
pub fn encode(
    tokenizer: &Tokenizer,
    paths: &[impl AsRef<Path>],
    options: &ReadOptions,
    max_length: usize,
    cancel: &Cancel,
) -> Result<EncodedCorpus> {
    let (lead, trail) = tokenizer.special_tokens(false);
    let special = lead.len() + trail.len();
    let Some(room) = max_length.checked_sub(special).filter(|&room| room > 0) else {
        return Err(Error::InvalidArgument(format!(
            "the maximal length {max_length} leaves no room for text beside {special} special tokens"
        )));
    };
    let why_not_fast = tokenizer.why_not_fast().map(str::to_owned);
    let why_no_cuts = tokenizer.boundaries().why_none().map(str::to_owned);
    let mut way = Way {
        tokenizer,
        room,
        encoding: Encoding {
            engine: if why_not_fast.is_none() { Engine::Fastokens } else { Engine::Tokenizers },
            why_not_fast,
            why_no_cuts,
        },
    };
    loop {
        match read_all(&way, paths, options, cancel)? {
            Outcome::Encoded(corpus) => return Ok(corpus),
            Outcome::Differs(document) => way.give_up(&document)?,
        }
    }
}

enum Outcome {
    Encoded(EncodedCorpus),
    /// A document on which this way's tokens are not the reference's.
    Differs(String),
}

/// Reads all documents and tokenizes them in one way, portion by portion.
fn read_all(way: &Way<'_>, paths: &[impl AsRef<Path>], options: &ReadOptions, cancel: &Cancel) -> Result<Outcome> {
    let mut all = Gathered {
        way,
        cancel,
        hasher: Sha256::new_with_prefix(HASH_HEADER),
        portion: Vec::new(),
        portion_bytes: 0,
        tokens: Vec::new(),
        offsets: vec![0],
        differs: None,
    };
    let read = for_each_document(paths, options, cancel, |text| all.add(text)).and_then(|_| all.encode_portion());
    if let Some(document) = all.differs {
        return Ok(Outcome::Differs(document));
    }
    read?;
    Ok(Outcome::Encoded(EncodedCorpus {
        tokens: all.tokens,
        offsets: all.offsets,
        content_hash: format!("{:x}", all.hasher.finalize()),
        encoding: way.encoding.clone(),
    }))
}

struct Gathered<'a> {
    way: &'a Way<'a>,
    cancel: &'a Cancel,
    hasher: Sha256,
    portion: Vec<String>,
    portion_bytes: usize,
    tokens: Vec<i64>,
    offsets: Vec<i64>,
    differs: Option<String>,
}

impl Gathered<'_> {
    fn add(&mut self, text: String) -> Result<()> {
        self.hasher.update((text.len() as u64).to_le_bytes());
        self.hasher.update(&text);
        self.portion_bytes += text.len();
        self.portion.push(text);
        if self.portion.len() < PORTION.0 && self.portion_bytes < PORTION.1 {
            return Ok(());
        }
        self.encode_portion()
    }

    /// Tokenizes what was read. Stops the reading by an error if `differs` is set.
    fn encode_portion(&mut self) -> Result<()> {
        let first = self.offsets.len();
        let portion = std::mem::take(&mut self.portion);
        self.portion_bytes = 0;
        let (way, cancel) = (self.way, self.cancel);
        let encoded: Vec<Vec<u32>> = install(|| {
            if let Some(at) = way.first_difference(&portion)? {
                self.differs = Some(format!("document {}", first + at));
                return Err(Error::Cancelled);
            }
            let each = portion.par_iter().map(|text| {
                cancel.check()?;
                way.encode(text)
            });
            each.collect()
        })?;
        let (lead, trail) = way.tokenizer.special_tokens(false);
        for document in encoded {
            self.tokens.extend([lead, &document, trail].into_iter().flatten().map(|&token| i64::from(token)));
            self.offsets.push(self.tokens.len() as i64);
        }
        require_memory((size_of::<i64>() * (self.tokens.len() + self.offsets.len())) as u64)
    }
}

/// One way of tokenizing.
struct Way<'a> {
    tokenizer: &'a Tokenizer,
    /// Tokens of a text that are kept.
    room: usize,
    encoding: Encoding,
}

impl Way<'_> {
    /// The first tokens of a text, without special ones.
    fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let mut from = self.room.saturating_mul(BYTES_PER_TOKEN);
        while self.encoding.why_no_cuts.is_none()
            && let Some(cut) = self.tokenizer.boundaries().first_cut_from(text, from)
        {
            let mut tokens = self.tokenizer.encode_bare(self.encoding.engine, &text[..cut])?;
            if tokens.len() >= self.room {
                tokens.truncate(self.room);
                return Ok(tokens);
            }
            from = cut.saturating_mul(2);
        }
        let mut tokens = self.tokenizer.encode_bare(self.encoding.engine, text)?;
        tokens.truncate(self.room);
        Ok(tokens)
    }

    /// The place of the first document whose tokens are not the reference's, among some that are tried.
    fn first_difference(&self, documents: &[String]) -> Result<Option<usize>> {
        if self.is_reference() {
            return Ok(None);
        }
        let differs: Vec<Option<usize>> = probes(documents)
            .into_par_iter()
            .map(|at| {
                let text = beginning(&documents[at]);
                let mut whole = self.tokenizer.encode_bare(Engine::Tokenizers, text)?;
                whole.truncate(self.room);
                // An error of the faster engine counts as a difference: the reference can do it.
                let same = self.encode(text).is_ok_and(|tokens| tokens == whole);
                Ok((!same).then_some(at))
            })
            .collect::<Result<_>>()?;
        Ok(differs.into_iter().flatten().min())
    }

    fn is_reference(&self) -> bool {
        self.encoding.engine == Engine::Tokenizers && self.encoding.why_no_cuts.is_some()
    }

    /// Goes over to the next slower way after a difference.
    fn give_up(&mut self, document: &str) -> Result<()> {
        if self.encoding.why_no_cuts.is_none() {
            self.encoding.why_no_cuts =
                Some(format!("tokenizing the beginning of {document} gave other tokens than tokenizing it whole"));
            return Ok(());
        }
        if self.encoding.engine == Engine::Tokenizers {
            return Err(Error::Tokenizer(DISAGREES.to_owned()));
        }
        self.encoding.engine = Engine::Tokenizers;
        self.encoding.why_not_fast = Some(format!("its tokens differ from those of tokenizers on {document}"));
        self.encoding.why_no_cuts = self.tokenizer.boundaries().why_none().map(str::to_owned);
        Ok(())
    }
}

/// Documents to compare on: spread evenly over the portion, and those with the least ASCII.
fn probes(documents: &[String]) -> Vec<usize> {
    let step = documents.len().div_ceil(PROBES / 2).max(1);
    let mut probes: Vec<usize> = (0..documents.len()).step_by(step).collect();
    let mut unusual: Vec<(std::cmp::Reverse<usize>, usize)> = documents
        .iter()
        .enumerate()
        .map(|(at, text)| (beginning(text).bytes().filter(|byte| !byte.is_ascii()).count(), at))
        .filter(|&(foreign, _)| foreign > 0)
        .map(|(foreign, at)| (std::cmp::Reverse(foreign), at))
        .collect();
    unusual.sort_unstable();
    probes.extend(unusual.into_iter().take(PROBES / 2).map(|(_, at)| at));
    probes
}

/// As much of a text as is compared.
fn beginning(text: &str) -> &str {
    let end = (0..=text.len().min(PROBE_BYTES)).rev().find(|&at| text.is_char_boundary(at));
    &text[..end.unwrap_or_default()]
}
