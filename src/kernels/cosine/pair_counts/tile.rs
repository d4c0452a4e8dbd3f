//! Counts of 64 rows with 64 codes, in bit planes.

use std::array;

use super::super::ranked::BLOCK;
use crate::kernels::simd::{Simd, prefetch};

/// Eight bytes as they are in a file, the lowest first.
pub type Word = [u8; 8];

/// Words to a cache line.
const PER_LINE: usize = 8;

/// Binary digits of any count, and one more.
const DIGITS_MAX: usize = u32::BITS as usize + 1;

/// Packed counts of 64 rows with 64 codes.
///
/// For each binary digit, the lowest first: a word of the rows whose largest count has that digit or a higher
/// one, and for each of these a word in which bit `c` is the digit of the count with the `c`-th code.
#[derive(Clone, Copy)]
pub(super) struct Tile<'a>(pub(super) &'a [Word]);

impl<'a> Tile<'a> {
    /// Rows and their planes by digit.
    #[inline(always)]
    fn digits(self) -> impl Iterator<Item = (u64, &'a [Word])> {
        let mut words = self.0;
        std::iter::from_fn(move || {
            let (rows, rest) = words.split_first()?;
            let rows = u64::from_le_bytes(*rows);
            let (planes, rest) = rest.split_at(rows.count_ones() as usize);
            words = rest;
            Some((rows, planes))
        })
    }

    /// Asks for the memory that it takes.
    #[inline(always)]
    pub(super) fn ask_for(self) {
        (0..self.0.len()).step_by(PER_LINE).for_each(|at| prefetch(self.0, at));
    }

    /// Binary digits of the largest count.
    #[inline(always)]
    pub(super) fn n_digits(self) -> usize {
        self.digits().count()
    }

    /// The count of a row with the code at the same place.
    pub(super) fn on_diagonal(self, row: usize) -> u32 {
        let digit = |(rows, planes): (u64, &[Word])| {
            let has_it = rows >> row & 1 == 1;
            let before = (rows & ((1 << row) - 1)).count_ones() as usize;
            let plane = if has_it { u64::from_le_bytes(planes[before]) } else { 0 };
            (plane >> row & 1) as u32
        };
        self.digits().enumerate().map(|(n, of_digit)| digit(of_digit) << n).sum()
    }
}

/// Unpacked counts of 64 rows with 64 codes: a plane of each row for each binary digit.
pub(super) struct Counts {
    pub(super) n_digits: usize,
    /// By digit and row; anything from `n_digits` on.
    pub(super) planes: [[u64; BLOCK]; DIGITS_MAX],
}

impl Counts {
    pub(super) fn new() -> Box<Self> {
        Box::new(Self { n_digits: 0, planes: [[0; BLOCK]; DIGITS_MAX] })
    }

    #[inline(always)]
    pub(super) fn unpack(&mut self, tile: Tile<'_>) {
        self.n_digits = 0;
        for ((rows, packed), planes) in tile.digits().zip(&mut self.planes) {
            self.n_digits += 1;
            if let Some(all) = packed.first_chunk::<BLOCK>() {
                *planes = array::from_fn(|row| u64::from_le_bytes(all[row]));
                continue;
            }
            *planes = [0; BLOCK];
            let mut left = rows;
            for plane in packed {
                planes[left.trailing_zeros() as usize % BLOCK] = u64::from_le_bytes(*plane);
                left &= left - 1;
            }
        }
    }

    /// Appends the counts, packed.
    #[inline(always)]
    pub(super) fn pack(&self, to: &mut Vec<Word>) {
        let planes = &self.planes[..self.n_digits];
        let (mut rows, mut rows_of) = (0, [0; DIGITS_MAX]);
        for (planes, rows_of) in planes.iter().zip(&mut rows_of).rev() {
            for (row, plane) in planes.iter().enumerate() {
                rows |= u64::from(*plane != 0) << row;
            }
            *rows_of = rows;
        }
        for (planes, rows) in planes.iter().zip(rows_of).take_while(|(_, rows)| *rows != 0) {
            to.push(rows.to_le_bytes());
            if rows == u64::MAX {
                to.extend_from_slice(&planes.map(u64::to_le_bytes));
                continue;
            }
            let mut left = rows;
            while left != 0 {
                to.push(planes[left.trailing_zeros() as usize].to_le_bytes());
                left &= left - 1;
            }
        }
    }

    /// Makes room for digits: those that are new are 0.
    #[inline(always)]
    pub(super) fn extend(&mut self, n_digits: usize) {
        for planes in self.planes.iter_mut().take(n_digits).skip(self.n_digits) {
            *planes = [0; BLOCK];
        }
        self.n_digits = self.n_digits.max(n_digits);
    }

    /// Adds other counts to these.
    #[inline(always)]
    pub(super) fn add(&mut self, by: &Self) {
        let carry = self.carry(by, |a, b, carry| (a & b) | (carry & (a ^ b)));
        if carry.iter().any(|&carry| carry != 0) {
            self.planes[self.n_digits] = carry;
            self.n_digits += 1;
        }
    }

    /// Takes other counts from these.
    ///
    /// # Panics
    /// If one is larger.
    #[inline(always)]
    pub(super) fn take(&mut self, by: &Self) {
        let carry = self.carry(by, |a, b, carry| (!a & b) | (carry & !(a ^ b)));
        let is_less = carry.iter().any(|&carry| carry != 0);
        assert!(!is_less, "no more users leave a pair than it has");
    }

    /// Adds or takes digit by digit, as `next` says what is carried to the next one.
    #[inline(always)]
    fn carry(&mut self, by: &Self, next: impl Fn(u64, u64, u64) -> u64) -> [u64; BLOCK] {
        self.extend(by.n_digits);
        let mut carry = [0; BLOCK];
        for (n, planes) in self.planes[..self.n_digits].iter_mut().enumerate() {
            let by = if n < by.n_digits { &by.planes[n] } else { &[0; BLOCK] };
            for ((plane, by), carry) in planes.iter_mut().zip(by).zip(&mut carry) {
                let sum = *plane ^ by ^ *carry;
                *carry = next(*plane, *by, *carry);
                *plane = sum;
            }
        }
        carry
    }

    /// One count.
    #[inline(always)]
    pub(super) fn count(&self, row: usize, code: u32) -> u32 {
        let digit = |(n, planes): (usize, &[u64; BLOCK])| ((planes[row] >> code & 1) as u32) << n;
        self.planes[..self.n_digits].iter().enumerate().map(digit).sum()
    }
}

/// 64 numbers in bit planes: one word for each binary digit, the lowest first.
pub(super) struct Planes {
    planes: [u64; u32::BITS as usize],
    /// All above are 0.
    n: usize,
}

impl Planes {
    #[inline(always)]
    pub(super) fn new<S: Simd>(simd: S, words: &[u32; BLOCK]) -> Self {
        let mut all = 0;
        for word in words {
            all |= word;
        }
        let n = (u32::BITS - all.leading_zeros()) as usize;
        let mut planes = [0; u32::BITS as usize];
        for (byte, planes) in planes[..n].chunks_mut(u8::BITS as usize).enumerate() {
            let mut bytes = [0; BLOCK];
            for (to, word) in bytes.iter_mut().zip(words) {
                *to = (word >> (8 * byte)) as u8;
            }
            for (digit, plane) in planes.iter_mut().enumerate() {
                *plane = simd.bytes_with(digit as u32, &bytes);
            }
        }
        Self { planes, n }
    }

    #[inline(always)]
    pub(super) fn planes(&self) -> &[u64] {
        &self.planes[..self.n]
    }
}
