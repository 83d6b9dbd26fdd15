//! The input of a run, taken apart into the choices a target makes. Used by all targets.

/// What is left of an input. Once it is used up every answer is 0 or empty.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    /// All of `data`.
    #[must_use]
    pub const fn new(data: &'a [u8]) -> Self {
        Self(data)
    }

    /// Whether it is used up.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// At most `length` bytes.
    pub fn bytes(&mut self, length: usize) -> &'a [u8] {
        let (taken, left) = self.0.split_at(length.min(self.0.len()));
        self.0 = left;
        taken
    }

    /// Everything that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        self.bytes(usize::MAX)
    }

    /// A byte.
    pub fn byte(&mut self) -> u8 {
        self.bytes(1).first().copied().unwrap_or(0)
    }

    /// A piece whose length is said by a byte before it; 255 stands for everything that is left.
    pub fn piece(&mut self) -> &'a [u8] {
        match self.byte() {
            u8::MAX => self.rest(),
            length => self.bytes(usize::from(length)),
        }
    }

    /// A number of eight bytes.
    pub fn number(&mut self) -> u64 {
        self.bytes(8)
            .iter()
            .fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    /// A number that is often close to an end of its kind, where mistakes are: from 0, from the
    /// middle (the ends of the signed numbers) or from the top, or any.
    pub fn extreme(&mut self) -> u64 {
        let near = u64::from(self.byte());
        match near % 4 {
            0 => near / 4,
            1 => u64::MAX - near / 4,
            2 => (1 << 63) - 32 + near / 4,
            _ => self.number(),
        }
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: usize) -> usize {
        let number = self.bytes(4).iter();
        let number = number.fold(0_usize, |number, byte| number << 8 | usize::from(*byte));
        number % end
    }
}
