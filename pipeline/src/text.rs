//! From tokens to the text that a client may see: stop strings can span tokens, so text that might begin one is held
//! back until it cannot.
//!
//! *Invariant:* what has been shown never has to be taken back, and the whole text depends on the tokens alone, not on
//! how many arrive at once.

/// Turns tokens into text one by one; a token that ends inside a character gives its text later.
pub trait Detokenize: Send {
    /// The text that `token` completes.
    fn push(&mut self, token: u32) -> String;
    /// Text still owed after the last token.
    fn finish(&mut self) -> String;
}

/// Where a text begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TextStart {
    /// It is a text of its own, such as an answer: the space that SentencePiece puts before a first word is none of it.
    #[default]
    Anew,
    /// It goes on where other text ended, such as a prompt to complete: a leading space is a space.
    Continues,
}

/// What a token added.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Piece {
    /// The token's own text.
    pub own: String,
    /// Text that may be shown now.
    pub shown: String,
    /// Whether a stop string is complete: nothing may follow.
    pub stopped: bool,
}

/// One sequence's text.
pub struct TextStream {
    detokenizer: Box<dyn Detokenize>,
    stops: Vec<String>,
    /// Not shown yet: a proper prefix of a stop string.
    held: String,
    stopped: bool,
}

impl TextStream {
    /// A text that ends before the first of `stops` to be complete. Panics if one is empty.
    pub fn new(detokenizer: Box<dyn Detokenize>, stops: Vec<String>) -> Self {
        assert!(stops.iter().all(|s| !s.is_empty()), "a stop string is empty");
        Self { detokenizer, stops, held: String::new(), stopped: false }
    }

    /// Adds a token. Panics after a stop.
    pub fn push(&mut self, token: u32) -> Piece {
        assert!(!self.stopped, "a token after the stop string");
        let own = self.detokenizer.push(token);
        let shown = self.release(&own);
        Piece { own, shown, stopped: self.stopped }
    }

    /// Ends the text and returns what was held back.
    pub fn finish(&mut self) -> String {
        if self.stopped {
            return String::new();
        }
        let owed = self.detokenizer.finish();
        let mut shown = self.release(&owed);
        shown.push_str(&std::mem::take(&mut self.held));
        shown
    }

    fn release(&mut self, added: &str) -> String {
        self.held.push_str(added);
        if let Some(start) = self.stop_start() {
            self.stopped = true;
            self.held.truncate(start);
            return std::mem::take(&mut self.held);
        }
        let kept = self.held.split_off(self.held.len() - self.held_back());
        std::mem::replace(&mut self.held, kept)
    }

    /// Where the stop string begins that is complete first; the longest of those that end together.
    fn stop_start(&self) -> Option<usize> {
        let found = self.stops.iter().filter_map(|stop| {
            let start = self.held.find(stop.as_str())?;
            Some((start + stop.len(), start))
        });
        found.min().map(|(_, start)| start)
    }

    /// Bytes at the end that could begin a stop string.
    fn held_back(&self) -> usize {
        let could_begin = |n: usize, stop: &String| {
            n < stop.len() && self.held.as_bytes().ends_with(&stop.as_bytes()[..n])
        };
        let longest = self.stops.iter().map(|s| s.len() - 1).max().unwrap_or(0);
        let longest = longest.min(self.held.len());
        (1..=longest).rev().find(|&n| self.stops.iter().any(|s| could_begin(n, s))).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{Strategy, any, prop, proptest};

    use super::{Detokenize, TextStream};

    /// Token n is the n-th piece.
    struct Pieces(Vec<String>);

    impl Detokenize for Pieces {
        fn push(&mut self, token: u32) -> String {
            self.0[token as usize].clone()
        }
        fn finish(&mut self) -> String {
            String::new()
        }
    }

    /// The text shown when `pieces` arrive one by one, and whether it stopped.
    fn shown(pieces: &[&str], stops: &[&str]) -> (String, bool) {
        let pieces: Vec<String> = pieces.iter().map(|p| p.to_string()).collect();
        let count = pieces.len();
        let stops = stops.iter().map(|s| s.to_string()).collect();
        let mut stream = TextStream::new(Box::new(Pieces(pieces)), stops);
        let mut text = String::new();
        for token in 0..count {
            let piece = stream.push(token as u32);
            text += &piece.shown;
            if piece.stopped {
                return (text, true);
            }
        }
        (text + &stream.finish(), false)
    }

    #[test]
    fn a_stop_string_may_span_pieces() {
        let cases: [(&[&str], &[&str], &str, bool); 7] = [
            (&["one", " tw", "o three"], &["two"], "one ", true),
            (&["one", " tw", "in"], &["two"], "one twin", false),
            (&["aab", "aac"], &["aabaac"], "", true),
            (&["aaba", "abaac"], &["abaac"], "aaba", true),
            (&["ends in tw"], &["two"], "ends in tw", false),
            (&["ü", "ö", "ä"], &["öä"], "ü", true),
            (&["abcd"], &["abcd", "bc"], "a", true),
        ];
        for (pieces, stops, text, stopped) in cases {
            assert_eq!(shown(pieces, stops), (text.to_string(), stopped), "{pieces:?} {stops:?}");
        }
    }

    #[test]
    fn text_is_shown_as_soon_as_it_cannot_begin_a_stop_string() {
        let pieces = ["x<", "b", "<e", "nd"].map(String::from).to_vec();
        let mut stream = TextStream::new(Box::new(Pieces(pieces)), vec!["<end>".into()]);
        let seen: Vec<String> = (0..4).map(|t| stream.push(t).shown).collect();
        assert_eq!(seen, ["x", "<b", "", ""]);
        assert_eq!(stream.finish(), "<end");
    }

    /// The definition, one character after the other.
    fn by_definition(text: &str, stops: &[String]) -> (String, bool) {
        for end in text.char_indices().map(|(i, c)| i + c.len_utf8()) {
            let longest =
                stops.iter().filter(|s| text[..end].ends_with(s.as_str())).map(String::len);
            if let Some(len) = longest.max() {
                return (text[..end - len].to_string(), true);
            }
        }
        (text.to_string(), false)
    }

    proptest! {
        #[test]
        fn the_text_does_not_depend_on_the_pieces(
            text in "[abü]{0,24}",
            stops in prop::collection::vec("[abü]{1,4}", 0..4),
            cuts in prop::collection::vec(any::<bool>(), 24).prop_map(|c| c.into_iter().chain([false; 8])),
        ) {
            let mut pieces = vec![String::new()];
            for (c, cut) in text.chars().zip(cuts) {
                if cut {
                    pieces.push(String::new());
                }
                pieces.last_mut().expect("one at least").push(c);
            }
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            let names: Vec<&str> = stops.iter().map(String::as_str).collect();
            assert_eq!(shown(&pieces, &names), by_definition(&text, &stops));
        }
    }
}
