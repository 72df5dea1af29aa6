//! White space, which is not the same to Python and to JSON.

/// Whether Python's `str.isspace` holds for the character: Unicode's white space and the four separators U+001C to U+001F.
#[must_use]
pub fn is_python_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// Python's `str.strip()`.
#[must_use]
pub fn strip(text: &str) -> &str {
    text.trim_matches(is_python_space)
}

/// Python's `str.lstrip()`.
#[must_use]
pub fn strip_start(text: &str) -> &str {
    text.trim_start_matches(is_python_space)
}

/// Python's `str.rstrip()`.
#[must_use]
pub fn strip_end(text: &str) -> &str {
    text.trim_end_matches(is_python_space)
}

/// Whether the byte may stand between two tokens of a JSON text (RFC 8259, section 2).
#[must_use]
pub fn is_json_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}
