//! `$(NAME)` in a command, as the kubelet replaces it (`third_party/forked/golang/expansion/expand.go` in Kubernetes).

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
};

/// The text with each `$(NAME)` that `value` knows replaced by its value, in which nothing is replaced again. One that
/// it does not know stays as it is, and so does a `$(` that is never closed; `$$` is one `$`.
pub fn expand(text: &OsStr, value: impl Fn(&OsStr) -> Option<OsString>) -> OsString {
    let mut expanded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        match (byte, after.first()) {
            (b'$', Some(b'$')) => {
                expanded.push(b'$');
                rest = after.get(1..).unwrap_or_default();
            }
            (b'$', Some(b'(')) => match after.iter().position(|&byte| byte == b')') {
                Some(end) => {
                    let name = OsStr::from_bytes(after.get(1..end).unwrap_or_default());
                    let found = value(name).map(OsString::into_vec);
                    expanded.extend(found.unwrap_or_else(|| [b"$(", name.as_bytes(), b")"].concat()));
                    rest = after.get(end + 1..).unwrap_or_default();
                }
                None => expanded.push(byte),
            },
            _ => expanded.push(byte),
        }
    }
    OsString::from_vec(expanded)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Of one variable, A, whose value looks like something to be expanded.
    fn with_a(text: &str) -> String {
        let value = |name: &OsStr| (name == "A").then(|| "$(A)$$".into());
        expand(OsStr::new(text), value).into_string().expect("text")
    }

    #[test]
    fn e10_what_the_kubelet_makes_of_it() {
        for (text, expected) in [
            ("", ""),
            ("$(A)", "$(A)$$"),
            ("http://$(A):$(A)/", "http://$(A)$$:$(A)$$/"),
            ("$(B) $() $( A)", "$(B) $() $( A)"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$$(A)$$"),
            ("$$$$(A)", "$$(A)"),
            ("$A ${A} $", "$A ${A} $"),
            ("$$", "$"),
            ("$(A", "$(A"),
            ("$(B$(A)", "$(B$(A)"),
            ("$($$", "$($"),
            (")$(A)(", ")$(A)$$("),
        ] {
            assert_eq!(with_a(text), expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_text_stays() {
        let bytes = OsStr::from_bytes(b"\xff$(A)\xfe");
        assert_eq!(expand(bytes, |_| Some("1".into())), OsStr::from_bytes(b"\xff1\xfe"));
    }

    proptest! {
        #[test]
        fn an_escaped_text_comes_out_as_it_was(text in r"[$()A ]{0,24}") {
            prop_assert_eq!(with_a(&text.replace('$', "$$")), text);
        }

        #[test]
        fn without_a_dollar_nothing_changes(text in r"[^$]{0,24}") {
            prop_assert_eq!(with_a(&text), text);
        }

        #[test]
        fn values_stand_where_their_names_stood(parts in prop::collection::vec("[^$()]{0,5}", 1..6), value in r"\PC{0,8}") {
            let text = parts.join("$(NAME)");
            let lookup = |name: &OsStr| (name == "NAME").then(|| OsString::from(&value));
            prop_assert_eq!(expand(OsStr::new(&text), lookup), OsString::from(parts.join(&value)));
        }
    }
}
