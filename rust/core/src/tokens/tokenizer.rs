//! A tokenizer with two engines: `fastokens` where it is proven right on the run's own prompts, `tokenizers` everywhere else.

use std::str::FromStr;

use serde_json::Value;

use crate::error::{Error, Result};
use crate::runtime::parallel::{self, caught};
use crate::tokens::boundary::Boundaries;

/// A token id that no vocabulary has.
const STAND_IN: u32 = u32::MAX - 1;

/// Which crate tokenizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Engine {
    /// The crate `fastokens`.
    Fastokens,
    /// The crate `tokenizers`, the reference.
    Tokenizers,
}

impl Engine {
    /// The crate's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Fastokens => "fastokens",
            Self::Tokenizers => "tokenizers",
        }
    }
}

/// A tokenizer as a `tokenizer.json` describes it, with lm-eval's rules for special tokens.
///
/// ```
/// use wmdp_core::tokens::tokenizer::Tokenizer;
///
/// let json = r#"{
///     "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
///     "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
///     "model": {"type": "WordLevel", "vocab": {"?": 0, "an": 1, "owl": 2}, "unk_token": "?"}
/// }"#;
/// let tokenizer = Tokenizer::from_json(json, true, 0, "?")?;
/// assert_eq!(tokenizer.encode("an owl")?, [1, 2]);
/// # Ok::<(), wmdp_core::Error>(())
/// ```
pub struct Tokenizer {
    reference: tokenizers::Tokenizer,
    fast: Result<fastokens::Tokenizer, String>,
    boundaries: Boundaries,
    /// Special tokens put before and after a text, if they are wanted.
    lead: Vec<u32>,
    trail: Vec<u32>,
    /// A text that begins with this one already has its BOS and gets no special tokens.
    prefix_text: String,
    prefix_token_id: u32,
}

impl Tokenizer {
    /// Loads both engines from the text of a `tokenizer.json`.
    ///
    /// `prefix_token_id` is the token in front of a continuation that has no context, and `prefix_text` what it decodes to; lm-eval
    /// takes BOS, else EOS. With `add_special_tokens` every text gets the special tokens of the tokenizer's post-processor.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if `tokenizers` cannot load it. That `fastokens` cannot is no error, see [`Tokenizer::why_not_fast`].
    pub fn from_json(json: &str, add_special_tokens: bool, prefix_token_id: u32, prefix_text: &str) -> Result<Self> {
        let value: Value =
            serde_json::from_str(json).map_err(|error| Error::Tokenizer(format!("not a tokenizer.json: {error}")))?;
        if value["model"]["dropout"].as_f64().is_some_and(|dropout| dropout > 0.0) {
            return Err(Error::Tokenizer(
                "its BPE has dropout, so the same text has other tokens each time: set `dropout` to null in tokenizer.json"
                    .to_owned(),
            ));
        }
        let boundaries = Boundaries::of(&value);
        // Either takes a few tenths of a second for a large vocabulary.
        let (reference, fast) = parallel::install(|| Ok(rayon::join(|| load_reference(json), || load_fast(value))))?;
        let mut tokenizer = Self {
            reference: reference?,
            fast,
            boundaries,
            lead: Vec::new(),
            trail: Vec::new(),
            prefix_text: prefix_text.to_owned(),
            prefix_token_id,
        };
        if add_special_tokens {
            tokenizer.find_special_tokens()?;
        }
        Ok(tokenizer)
    }

    /// Asks the post-processor what it puts around a text, by a token that stands for any text: no text is tokenized, since there is
    /// none that every tokenizer knows.
    fn find_special_tokens(&mut self) -> Result<()> {
        let around = |add| {
            caught(|| {
                let token = tokenizers::Token::new(STAND_IN, "x".to_owned(), (0, 1));
                let encoding = tokenizers::Encoding::from_tokens(vec![token], 0);
                self.reference.post_process(encoding, None, add).map(|whole| whole.get_ids().to_vec())
            })
            .and_then(|done| done.map_err(|error| error.to_string()))
            .map_err(|problem| Error::Tokenizer(format!("its post-processor fails: {problem}")))
        };
        let (bare, full) = (around(false)?, around(true)?);
        let mut at = full.iter().enumerate().filter(|&(_, &token)| token == STAND_IN).map(|(at, _)| at);
        let (Some(at), None, [STAND_IN]) = (at.next(), at.next(), bare.as_slice()) else {
            return Err(Error::Tokenizer(
                "its post-processor changes tokens instead of adding some around them, which is not supported"
                    .to_owned(),
            ));
        };
        self.lead = full[..at].to_vec();
        self.trail = full[at + 1..].to_vec();
        Ok(())
    }

    /// Special tokens before and after `text` under lm-eval's rule: none if it begins with the prefix token's text.
    #[must_use]
    pub fn special_tokens(&self, begins_with_prefix: bool) -> (&[u32], &[u32]) {
        if begins_with_prefix { (&[], &[]) } else { (&self.lead, &self.trail) }
    }

    /// The text that marks a prompt as having its BOS already.
    #[must_use]
    pub fn prefix_text(&self) -> &str {
        &self.prefix_text
    }

    /// The token in front of a continuation without a context.
    #[must_use]
    pub fn prefix_token_id(&self) -> u32 {
        self.prefix_token_id
    }

    /// Where texts may be cut.
    #[must_use]
    pub fn boundaries(&self) -> &Boundaries {
        &self.boundaries
    }

    /// Why `fastokens` cannot load this tokenizer, if so.
    #[must_use]
    pub fn why_not_fast(&self) -> Option<&str> {
        self.fast.as_ref().err().map(String::as_str)
    }

    /// The tokens of a text without special tokens around it.
    pub fn encode_bare(&self, engine: Engine, text: &str) -> Result<Vec<u32>> {
        match (engine, &self.fast) {
            (Engine::Fastokens, Ok(fast)) => caught(|| fast.encode(text))
                .and_then(|done| done.map_err(|error| error.to_string()))
                .map_err(|error| Error::Tokenizer(format!("fastokens failed on {}: {error}", excerpt(text)))),
            _ => self.encode_reference(text),
        }
    }

    /// The tokens of a text by lm-eval's rules, as the `tokenizers` crate makes them.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let bare = self.encode_reference(text)?;
        let (lead, trail) = self.special_tokens(self.begins_with_prefix(text));
        Ok([lead, &bare, trail].concat())
    }

    /// Whether a text begins with the prefix token's text; `str.startswith`, so true of every text if that is empty.
    #[must_use]
    pub fn begins_with_prefix(&self, text: &str) -> bool {
        text.starts_with(&self.prefix_text)
    }

    fn encode_reference(&self, text: &str) -> Result<Vec<u32>> {
        caught(|| self.reference.encode_fast(text, false))
            .and_then(|done| done.map_err(|error| error.to_string()))
            .map(|encoding| encoding.get_ids().to_vec())
            .map_err(|error| Error::Tokenizer(format!("failed on {}: {error}", excerpt(text))))
    }
}

// Whether a text is cut or filled up is decided with the model's limit at hand, not by the tokenizer.

fn load_reference(json: &str) -> Result<tokenizers::Tokenizer> {
    let load = || {
        let mut reference = tokenizers::Tokenizer::from_str(json)?;
        reference.with_padding(None);
        reference.with_truncation(None)?;
        Ok(reference)
    };
    caught(load)
        .and_then(|done: Result<_, tokenizers::Error>| done.map_err(|error| error.to_string()))
        .map_err(Error::Tokenizer)
}

/// No vocabulary is so large. `fastokens` keeps lists as long as the largest id, eleven bytes for each.
const MOST_IDS: u64 = 1 << 24;

fn load_fast(json: Value) -> Result<fastokens::Tokenizer, String> {
    if let Some(id) = largest_id(&json).filter(|&id| id >= MOST_IDS) {
        return Err(format!("a token has the id {id}, far beyond any vocabulary"));
    }
    let mut fast = caught(|| fastokens::Tokenizer::from_json(json))?.map_err(|error| error.to_string())?;
    fast.set_padding(None);
    fast.set_truncation(None);
    Ok(fast)
}

/// The largest id that a `tokenizer.json` gives a token, of the vocabulary or of those added to it.
fn largest_id(json: &Value) -> Option<u64> {
    let added = json["added_tokens"].as_array().into_iter().flatten().filter_map(|token| token["id"].as_u64());
    let vocabulary = json["model"]["vocab"].as_object().into_iter().flat_map(|vocab| vocab.values());
    added.chain(vocabulary.filter_map(Value::as_u64)).max()
}

/// The beginning of a text, for an error message.
fn excerpt(text: &str) -> String {
    let end = text.char_indices().nth(60).map_or(text.len(), |(at, _)| at);
    format!("{:?}", &text[..end])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn loaded(added: u64, in_vocabulary: u64) -> Tokenizer {
        let described = json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null, "decoder": null,
            "pre_tokenizer": {"type": "Whitespace"},
            "added_tokens": [{
                "id": added, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
                "special": true,
            }],
            "model": {"type": "WordLevel", "vocab": {"a": 0, "b": in_vocabulary}, "unk_token": "a"},
        });
        Tokenizer::from_json(&described.to_string(), false, 0, "").unwrap()
    }

    #[test]
    fn an_id_far_beyond_any_vocabulary_is_left_to_tokenizers() {
        for (added, in_vocabulary) in [(u64::from(u32::MAX >> 1), 1), (2, MOST_IDS)] {
            let tokenizer = loaded(added, in_vocabulary);
            assert!(tokenizer.why_not_fast().unwrap().contains("far beyond any vocabulary"));
            assert_eq!(tokenizer.encode("b a").unwrap(), [u32::try_from(in_vocabulary).unwrap(), 0]);
        }
        assert!(!loaded(2, MOST_IDS - 1).why_not_fast().unwrap_or_default().contains("far beyond"));
    }
}
