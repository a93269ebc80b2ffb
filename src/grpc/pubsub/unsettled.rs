//! Deliveries that are not settled, by their ascending numbers.
//!
//! Most are settled in the order in which they were numbered, so they stand in a row and a number leads to its place.
//! Invariant: of the places at most every second is empty, the last few aside, however long the oldest is unsettled.

use std::collections::VecDeque;

/// So many empty places are never worth a move.
const FEW: usize = 64;

/// See the module.
#[derive(Debug)]
pub(super) struct Unsettled<T> {
    /// Ascending; the first is not empty.
    places: VecDeque<(u64, Option<T>)>,
    count: usize,
}

impl<T> Default for Unsettled<T> {
    fn default() -> Self {
        Self { places: VecDeque::new(), count: 0 }
    }
}

impl<T> Unsettled<T> {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// Adds one, with a number greater than all before.
    pub(super) fn push(&mut self, number: u64, what: T) {
        debug_assert!(self.places.back().is_none_or(|(last, _)| *last < number));
        self.places.push_back((number, Some(what)));
        self.count += 1;
    }

    /// Takes one out, if it is there.
    pub(super) fn remove(&mut self, number: u64) -> Option<T> {
        let first = self.places.front()?.0;
        // Between two neighbours no number is left out, as long as nothing was moved together.
        let guess = usize::try_from(number.checked_sub(first)?).ok()?;
        let at = match self.places.get(guess) {
            Some((there, _)) if *there == number => guess,
            _ => self.places.binary_search_by_key(&number, |(there, _)| *there).ok()?,
        };
        let what = self.places.get_mut(at)?.1.take()?;
        self.count -= 1;
        while self.places.pop_front_if(|(_, what)| what.is_none()).is_some() {}
        if self.places.len() > 2 * self.count + FEW {
            self.places.retain(|(_, what)| what.is_some());
        }
        Some(what)
    }

    /// All of them, in their order.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = T> {
        self.count = 0;
        std::mem::take(&mut self.places).into_iter().filter_map(|(_, what)| what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_found_once_in_whatever_order() {
        let mut unsettled = Unsettled::default();
        for number in [1, 2, 4, 5, 9] {
            unsettled.push(number, number * 10);
        }
        assert_eq!(unsettled.remove(0), None);
        assert_eq!(unsettled.remove(3), None);
        assert_eq!(unsettled.remove(10), None);
        assert_eq!(unsettled.remove(5), Some(50));
        assert_eq!(unsettled.remove(5), None);
        assert_eq!(unsettled.remove(1), Some(10));
        assert_eq!(unsettled.remove(9), Some(90));
        assert_eq!(unsettled.len(), 2);
        assert_eq!(unsettled.drain().collect::<Vec<_>>(), [20, 40]);
        assert_eq!((unsettled.len(), unsettled.remove(2)), (0, None));
    }

    #[test]
    fn one_that_is_never_settled_does_not_keep_the_places_of_the_others() {
        let mut unsettled = Unsettled::default();
        unsettled.push(1, ());
        for number in 2..10_000 {
            unsettled.push(number, ());
            if number % 3 == 0 {
                assert_eq!(unsettled.remove(number - 1), Some(()));
                assert_eq!(unsettled.remove(number), Some(()));
            } else if number > 4 && number % 3 == 1 {
                assert_eq!(unsettled.remove(number), Some(()));
            }
            assert!(unsettled.places.len() <= 2 * unsettled.len() + FEW);
        }
        assert_eq!(unsettled.remove(1), Some(()));
    }
}
