//! How the fields of a property set are read and written: `[id][value]`, once or as a list.

use std::num::{NonZeroU16, NonZeroU32};

use bytes::Bytes;
use bytestring::ByteString;

use super::{
    encode::Sink,
    error::{DecodeError, EncodeError},
    property::{MaximumQos, PayloadFormat, PropertyId, SubscriptionId, SubscriptionIds, UserProperty},
    read::Reader,
};

/// A field of a set: once, or a bounded list.
pub(super) trait ReadField {
    fn read(&mut self, id: PropertyId, from: &mut Reader<'_>) -> Result<(), DecodeError>;
}

/// A value's form on the wire.
trait ReadValue: Sized {
    fn read(id: PropertyId, from: &mut Reader<'_>) -> Result<Self, DecodeError>;
}

impl<T: ReadValue> ReadField for Option<T> {
    fn read(&mut self, id: PropertyId, from: &mut Reader<'_>) -> Result<(), DecodeError> {
        if self.is_some() {
            return Err(DecodeError::DuplicateProperty(id));
        }
        *self = Some(T::read(id, from)?);
        Ok(())
    }
}

impl ReadField for Vec<UserProperty> {
    fn read(&mut self, _: PropertyId, from: &mut Reader<'_>) -> Result<(), DecodeError> {
        if self.len() >= from.limits.max_user_properties {
            return Err(DecodeError::TooManyUserProperties);
        }
        self.push((from.string()?, from.string()?));
        Ok(())
    }
}

impl ReadField for SubscriptionIds {
    fn read(&mut self, id: PropertyId, from: &mut Reader<'_>) -> Result<(), DecodeError> {
        if self.len() >= from.limits.max_subscription_ids {
            return Err(DecodeError::TooManySubscriptionIds);
        }
        self.push(SubscriptionId::read(id, from)?);
        Ok(())
    }
}

macro_rules! read_values {
    ($($type:ty: $from:ident => $checked:expr;)+) => {
        $(impl ReadValue for $type {
            fn read(id: PropertyId, from: &mut Reader<'_>) -> Result<Self, DecodeError> {
                let checked: fn(_) -> Option<Self> = $checked;
                checked(from.$from()?).ok_or(DecodeError::PropertyValue(id))
            }
        })+
    };
}

read_values! {
    bool: u8 => |value| match value { 0 => Some(false), 1 => Some(true), _ => None };
    PayloadFormat: u8 => |value| match value { 0 => Some(Self::Bytes), 1 => Some(Self::Utf8), _ => None };
    MaximumQos: u8 => |value| match value { 0 => Some(Self::AtMostOnce), 1 => Some(Self::AtLeastOnce), _ => None };
    u16: u16 => Some;
    u32: u32 => Some;
    NonZeroU16: u16 => Self::new;
    NonZeroU32: u32 => Self::new;
    SubscriptionId: varint => Self::new;
    ByteString: string => Some;
    Bytes: binary => Some;
}

/// The writing side of a field: `[id][value]` for each value there is.
pub(super) trait WriteField {
    fn write<S: Sink>(&self, id: PropertyId, to: &mut S) -> Result<(), EncodeError>;
}

trait WriteValue {
    fn write<S: Sink>(&self, to: &mut S) -> Result<(), EncodeError>;
}

impl<T: WriteValue> WriteField for Option<T> {
    fn write<S: Sink>(&self, id: PropertyId, to: &mut S) -> Result<(), EncodeError> {
        self.as_slice().write(id, to)
    }
}

impl<T: WriteValue> WriteField for [T] {
    fn write<S: Sink>(&self, id: PropertyId, to: &mut S) -> Result<(), EncodeError> {
        self.iter().try_for_each(|value| {
            to.u8(id as u8);
            value.write(to)
        })
    }
}

impl<T: WriteValue> WriteField for &[T] {
    fn write<S: Sink>(&self, id: PropertyId, to: &mut S) -> Result<(), EncodeError> {
        (**self).write(id, to)
    }
}

impl<T: WriteValue> WriteField for Vec<T> {
    fn write<S: Sink>(&self, id: PropertyId, to: &mut S) -> Result<(), EncodeError> {
        self.as_slice().write(id, to)
    }
}

macro_rules! write_values {
    ($($type:ty: |$value:ident, $to:ident| $write:expr;)+) => {
        $(impl WriteValue for $type {
            fn write<S: Sink>(&self, $to: &mut S) -> Result<(), EncodeError> {
                let $value = self;
                #[allow(clippy::unit_arg, reason = "one form for writes that can fail and that cannot")]
                $write
            }
        })+
    };
}

write_values! {
    bool: |value, to| Ok(to.u8(u8::from(*value)));
    PayloadFormat: |value, to| Ok(to.u8(*value as u8));
    MaximumQos: |value, to| Ok(to.u8(*value as u8));
    u16: |value, to| Ok(to.u16(*value));
    u32: |value, to| Ok(to.u32(*value));
    NonZeroU16: |value, to| Ok(to.u16(value.get()));
    NonZeroU32: |value, to| Ok(to.u32(value.get()));
    SubscriptionId: |value, to| to.varint(value.get());
    ByteString: |value, to| to.field(value.as_bytes());
    Bytes: |value, to| to.field(value);
    &str: |value, to| to.field(value.as_bytes());
    &[u8]: |value, to| to.field(value);
    UserProperty: |value, to| to.field(value.0.as_bytes()).and_then(|()| to.field(value.1.as_bytes()));
}
