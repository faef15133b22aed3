//! From token bytes to text that can be shown at once: whole characters only, and never a part of what
//! may yet turn out to be a stop string.

/// Bytes that are held back without growing: a long token and the beginning of a stop string.
const HELD_ROOM: usize = 256;

/// Text that grows by tokens.
#[derive(Clone, Debug, Default)]
pub struct TextStream {
    stops: Vec<Vec<u8>>,
    text: String,
    /// Bytes held back: an unfinished character or the beginning of a stop string.
    held: Vec<u8>,
    stopped: bool,
}

impl TextStream {
    /// Empty text that ends before the first of `stops`, with room for so many bytes. Empty stop strings are
    /// ignored.
    pub fn new(stops: impl IntoIterator<Item = String>, room: usize) -> Self {
        Self {
            stops: stops
                .into_iter()
                .filter(|stop| !stop.is_empty())
                .map(String::into_bytes)
                .collect(),
            text: String::with_capacity(room),
            held: Vec::with_capacity(HELD_ROOM),
            stopped: false,
        }
    }

    /// What can be shown. It only grows.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The text, whole once [`TextStream::flush`] was called.
    pub fn into_text(self) -> String {
        self.text
    }

    /// Whether a stop string was met. What follows it is dropped.
    pub fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// Appends the bytes of a token; true if they complete a stop string, which does not become text.
    pub fn push(&mut self, bytes: &[u8]) -> bool {
        if self.stopped || bytes.is_empty() {
            return self.stopped;
        }
        self.held.extend_from_slice(bytes);
        if let Some(at) = self.find_stop() {
            self.held.truncate(at);
            self.flush();
            self.stopped = true;
            return true;
        }
        let free = self.held.len() - self.possible_stop();
        let shown = show(&self.held[..free], false, &mut self.text);
        self.held.drain(..shown);
        false
    }

    /// Nothing follows: what was held back becomes text, an unfinished character U+FFFD.
    pub fn flush(&mut self) {
        show(&self.held, true, &mut self.text);
        self.held.clear();
    }

    /// Where the stop string begins that ends first in the held bytes; of two that end together the
    /// longer. That way the result does not depend on where tokens end.
    fn find_stop(&self) -> Option<usize> {
        (1..=self.held.len()).find_map(|end| {
            let ends = |stop: &&Vec<u8>| self.held[..end].ends_with(stop);
            let longest = self.stops.iter().filter(ends).map(Vec::len).max();
            longest.map(|length| end - length)
        })
    }

    /// The length of the longest tail of the held bytes that some stop string begins with.
    fn possible_stop(&self) -> usize {
        let longest = self.stops.iter().map(|stop| stop.len() - 1).max();
        let most = longest.unwrap_or(0).min(self.held.len());
        let begins = |length: &usize| {
            let tail = &self.held[self.held.len() - length..];
            self.stops.iter().any(|stop| stop.starts_with(tail))
        };
        (1..=most).rev().find(begins).unwrap_or(0)
    }
}

/// Appends `bytes` to `text`, each maximal invalid part as U+FFFD, and says how many bytes it took: all,
/// or all but an unfinished character at the end unless this `is_end`.
fn show(bytes: &[u8], is_end: bool, text: &mut String) -> usize {
    let mut taken = 0;
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        taken += chunk.valid().len();
        let invalid = chunk.invalid();
        if invalid.is_empty() {
            continue;
        }
        let at_end = taken + invalid.len() == bytes.len();
        if at_end && !is_end && is_unfinished(invalid) {
            return taken;
        }
        text.push(char::REPLACEMENT_CHARACTER);
        taken += invalid.len();
    }
    taken
}

/// Whether more bytes could make a character of these.
fn is_unfinished(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stream(stops: &[&str]) -> TextStream {
        TextStream::new(stops.iter().map(|stop| (*stop).to_string()), 0)
    }

    #[test]
    fn a_character_appears_when_it_is_whole() {
        let mut stream = stream(&[]);
        stream.push(&[b'a', 0xe2, 0x82]);
        assert_eq!(stream.text(), "a");
        stream.push(&[0xac, b'b']);
        assert_eq!(stream.text(), "a€b");
    }

    #[test]
    fn an_unfinished_character_at_the_end_is_replaced() {
        let mut stream = stream(&[]);
        stream.push(&[b'a', 0xf0, 0x9f]);
        stream.flush();
        assert_eq!(stream.into_text(), "a\u{fffd}");
    }

    #[test]
    fn a_stop_string_across_tokens_is_never_shown() {
        let mut stream = stream(&["\n\nQ:", "END"]);
        assert!(!stream.push(b"yes\n"));
        assert_eq!(stream.text(), "yes");
        assert!(!stream.push(b"\n"));
        assert_eq!(stream.text(), "yes");
        assert!(stream.push(b"Q: next"));
        assert_eq!(stream.text(), "yes");
        assert!(stream.push(b"more"));
        stream.flush();
        assert_eq!(stream.into_text(), "yes");
    }

    #[test]
    fn what_no_stop_string_can_grow_from_is_shown_at_once() {
        let mut stream = stream(&["aab"]);
        stream.push(b"xaa");
        assert_eq!(stream.text(), "x");
        stream.push(b"a");
        assert_eq!(stream.text(), "xa");
        stream.push(b"c");
        assert_eq!(stream.text(), "xaaac");
    }

    #[test]
    fn the_stop_string_that_ends_first_counts() {
        let mut stream = stream(&["bcde", "cd", "bcd"]);
        assert!(stream.push(b"abcde"));
        assert_eq!(stream.text(), "a");
    }

    #[test]
    fn a_held_beginning_becomes_text_at_the_end() {
        let mut stream = stream(&["STOP"]);
        stream.push(b"no STO");
        assert_eq!(stream.text(), "no ");
        stream.flush();
        assert_eq!(stream.text(), "no STO");
    }

    /// Cuts `bytes` into tokens of 1 to 4 bytes as `cuts` says.
    fn tokens<'a>(mut bytes: &'a [u8], cuts: &[u8]) -> Vec<&'a [u8]> {
        let mut tokens = Vec::new();
        let mut cuts = cuts.iter().cycle();
        while !bytes.is_empty() {
            let length = usize::from(cuts.next().copied().unwrap_or(0) % 4 + 1);
            let (token, rest) = bytes.split_at(length.min(bytes.len()));
            tokens.push(token);
            bytes = rest;
        }
        tokens
    }

    proptest! {
        /// However bytes are cut into tokens, the text is that of the whole, and what is shown is always
        /// a beginning of it.
        #[test]
        fn tokens_add_up_to_the_whole(
            text in prop_oneof![
                ".{0,40}".prop_map(String::into_bytes),
                prop::collection::vec(any::<u8>(), 0..60),
            ],
            cuts in prop::collection::vec(any::<u8>(), 1..9),
        ) {
            let whole = String::from_utf8_lossy(&text);
            let mut stream = stream(&["\u{1}never\u{2}", "€"]);
            prop_assume!(!whole.contains('€') && !whole.contains("\u{1}never\u{2}"));
            for token in tokens(&text, &cuts) {
                stream.push(token);
                prop_assert!(whole.starts_with(stream.text()));
            }
            stream.flush();
            prop_assert_eq!(stream.text(), whole.as_ref());
        }

        /// The text ends before the first stop string, however it is cut, and no part of it was shown.
        #[test]
        fn text_ends_before_the_first_stop(
            text in "[ab€]{0,30}",
            stops in prop::collection::vec("[ab€]{1,4}", 1..4),
            cuts in prop::collection::vec(any::<u8>(), 1..9),
        ) {
            let first = stops
                .iter()
                .filter_map(|stop| text.find(stop.as_str()).map(|at| (at + stop.len(), at)))
                .min();
            let ends = first.map(|(_, at)| at);
            let mut stream = TextStream::new(stops.clone(), 0);
            let mut stopped = false;
            for token in tokens(text.as_bytes(), &cuts) {
                stopped |= stream.push(token);
            }
            prop_assert_eq!(stopped, ends.is_some());
            prop_assert_eq!(stream.is_stopped(), ends.is_some());
            stream.flush();
            prop_assert_eq!(stream.text(), &text[..ends.unwrap_or(text.len())]);
        }
    }
}
