//! The one error type that crosses the C boundary.

/// What kind of failure it is; the numbers are `weir_text_code` of the C header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Code {
    InvalidArgument = 1,
    NotFound = 2,
    Exhausted = 3,
    Internal = 4,
}

/// A failure with a sentence for people.
#[derive(Debug)]
pub struct Failure {
    pub code: Code,
    pub message: String,
}

pub type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    pub fn invalid(message: impl Into<String>) -> Self {
        Failure { code: Code::InvalidArgument, message: message.into() }
    }

    pub fn not_found(message: impl Into<String>) -> Self {
        Failure { code: Code::NotFound, message: message.into() }
    }

    pub fn exhausted(message: impl Into<String>) -> Self {
        Failure { code: Code::Exhausted, message: message.into() }
    }

    pub fn internal(message: impl Into<String>) -> Self {
        Failure { code: Code::Internal, message: message.into() }
    }
}
