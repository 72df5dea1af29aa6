"""From questions to prompts and tokens. What a prompt says is made in Rust (`rust/core/src/text`) or by jinja2."""
