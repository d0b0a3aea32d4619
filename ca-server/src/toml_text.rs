//! What is said of a TOML file that cannot be read in its shape: a line, a key of ours, and what
//! was expected there. A value is never repeated, for the wrong file may hold a secret, and so may
//! the right one in the wrong place.

/// The line of the error, counted from 1.
pub fn line(text: &str, error: &toml::de::Error) -> usize {
    error.span().map_or(1, |span| {
        text[..span.start.min(text.len())].matches('\n').count() + 1
    })
}

/// What is wrong there, in one line.
pub fn sentence(text: &str, error: &toml::de::Error) -> String {
    // The parser's message names the value; an operator looks for the key.
    let line = text.lines().nth(line(text, error) - 1);
    let key = line
        .and_then(|line| line.split_once('='))
        .map(|(key, _)| key.trim())
        .filter(|key| is_key(key));
    let key = key.map(|key| format!("`{key}` ")).unwrap_or_default();
    let message = without_values(&error.message().replace('\n', " "));
    key + &message.replace(
        "expected a duration",
        "expected a duration such as \"5s\" or \"24h\"",
    )
}

/// A word that may be one of our keys, which are small letters: base64, hexadecimal and most
/// passwords are none.
fn is_key(word: &str) -> bool {
    let letter = |letter: u8| letter.is_ascii_lowercase() || matches!(letter, b'_' | b'-' | b'.');
    (1..=32).contains(&word.len()) && word.bytes().all(letter)
}

/// serde's messages that repeat what stands in the file, without it.
fn without_values(message: &str) -> String {
    for kind in ["invalid type: ", "invalid value: ", "invalid length "] {
        if let Some(rest) = message.strip_prefix(kind) {
            let found = rest.split([' ', '`', '"', ',']).next().unwrap_or_default();
            // The value comes first and may hold any text, so the last is what the program says.
            let expected = rest
                .rsplit_once(", expected ")
                .map(|(_, expected)| format!(", expected {expected}"))
                .unwrap_or_default();
            let found = if kind == "invalid length " { "" } else { found };
            return format!(
                "{}{found}{expected}",
                if kind == "invalid length " {
                    "invalid length"
                } else {
                    kind
                }
            );
        }
    }
    for kind in ["unknown field ", "unknown variant "] {
        if let Some((word, rest)) = message
            .strip_prefix(kind)
            .and_then(|rest| rest.strip_prefix('`')?.split_once('`'))
        {
            let shown = if kind == "unknown field " && is_key(word) {
                format!("`{word}`")
            } else {
                String::new()
            };
            return format!("{}{}", format!("{kind}{shown}").trim_end(), rest);
        }
    }
    if let Some((before, rest)) = message
        .split_once('`')
        .filter(|(before, _)| before.starts_with("duplicate") || before.starts_with("missing"))
    {
        let (word, after) = rest.split_once('`').unwrap_or((rest, ""));
        return if is_key(word) {
            message.to_owned()
        } else {
            format!("{}{after}", before.trim_end())
        };
    }
    // What the parser says of the signs themselves repeats none; of anything else only that it is
    // wrong is said.
    match message.contains(['`', '"']) && !message.contains("expected") {
        true => "what stands there is not legal".to_owned(),
        false => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code, reason = "only the errors count")]
    struct File {
        name: Option<String>,
        number: Option<u16>,
        kind: Option<Kind>,
        #[serde(default, with = "humantime_serde")]
        time: std::time::Duration,
    }

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Kind {
        One,
        Two,
    }

    fn said(text: &str) -> String {
        sentence(text, &toml::from_str::<File>(text).unwrap_err())
    }

    #[test]
    fn a_sentence_names_the_key_and_what_was_expected() {
        for (text, expected) in [
            ("name = 7", ["`name`", "expected a string"]),
            ("number = \"x\"", ["`number`", "expected u16"]),
            ("kind = \"three\"", ["`kind`", "expected `one` or `two`"]),
            ("colour = 1", ["`colour`", "expected one of"]),
            ("time = \"5\"", ["`time`", "such as \"5s\""]),
        ] {
            let said = said(text);
            assert!(expected.iter().all(|part| said.contains(part)), "{said}");
        }
    }

    #[test]
    fn no_sentence_repeats_a_value() {
        for text in [
            "name = 48214821",
            "number = \"c4nary, expected nothing\"",
            "number = 4821482148214821",
            "kind = \"c4nary\"",
            "C4NARY+/c4nary==",
            "C4NARYc4nary = 1",
            "c4narysecret=x y",
            "c4nary4821deadbeef0123456789abcd = 1",
            "\"C4NARY c4nary\" = 1",
            "time = \"c4nary\"",
            "name = \"a\"\nname = \"c4nary\"",
            "C4NARY = 1\nC4NARY = 2",
            "name = c4nary",
            "name = \"\"\"c4nary\"\n",
            "name = \"c4nary\\q\"",
            "[C4NARY]\n[C4NARY]",
            "[[name]]\nc4nary = 1",
            "-----BEGIN PRIVATE KEY-----\nC4NARYc4nary==\n-----END PRIVATE KEY-----\n",
        ] {
            let said = said(text);
            assert!(
                !said.to_lowercase().contains("c4nary") && !said.contains("4821"),
                "{text:?}: {said}"
            );
        }
    }
}
