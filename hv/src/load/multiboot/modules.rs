//! Several modules in one file, since a slot has one file beside the kernel. Written by the build host, read by the box.
//!
//! ```text
//! 0    magic "OUTPOST-MODULES\n"
//! 16   number of modules (u32, little-endian, as all numbers here)
//! 20   for each: length of its text (u32), length of its bytes (u32)
//! …    for each: its text, its bytes
//! ```

use alloc::vec::Vec;

use super::{LoadError, MODULE_LIMIT, Module};
use crate::load::Fields;

const MAGIC: &[u8; 16] = b"OUTPOST-MODULES\n";
/// Bytes before the table.
const HEADER: u64 = 20;
/// Bytes of one entry of the table.
const ENTRY: u64 = 8;

/// Puts modules into one file. None if there are more than 64, or one has 4 GiB.
pub fn pack(modules: &[Module<'_>]) -> Option<Vec<u8>> {
    if modules.len() > MODULE_LIMIT {
        return None;
    }
    let mut file = MAGIC.to_vec();
    let put = |file: &mut Vec<u8>, length: usize| -> Option<()> {
        file.extend_from_slice(&u32::try_from(length).ok()?.to_le_bytes());
        Some(())
    };
    put(&mut file, modules.len())?;
    for module in modules {
        put(&mut file, module.command_line.len())?;
        put(&mut file, module.bytes.len())?;
    }
    for module in modules {
        file.extend_from_slice(module.command_line.as_bytes());
        file.extend_from_slice(module.bytes);
    }
    Some(file)
}

/// The modules of a file: those that [`pack`] put into it, or the file itself as the only one, without a text. None if it is empty.
///
/// # Errors
/// [`LoadError::CutShort`] and [`LoadError::Malformed`] if it begins as a packed file and is none.
pub fn unpack(file: &[u8]) -> Result<Vec<Module<'_>>, LoadError> {
    const PART: &str = "the file of modules";
    if file.is_empty() {
        return Ok(Vec::new());
    }
    if !file.starts_with(MAGIC) {
        return Ok(alloc::vec![Module {
            bytes: file,
            command_line: "",
        }]);
    }
    let fields = Fields(file);
    let count = fields.u32(PART, MAGIC.len() as u64)?;
    if count as usize > MODULE_LIMIT {
        return Err(LoadError::Malformed("its file of modules has more than 64"));
    }
    let mut modules = Vec::with_capacity(count as usize);
    let mut at = HEADER + u64::from(count) * ENTRY;
    for index in 0..u64::from(count) {
        let entry = HEADER + index * ENTRY;
        let mut take = |field: u64| -> Result<&[u8], LoadError> {
            let length = u64::from(fields.u32(PART, entry + field)?);
            let taken = fields.slice(PART, at, length)?;
            at += length;
            Ok(taken)
        };
        let (text, bytes) = (take(0)?, take(4)?);
        modules.push(Module {
            bytes,
            command_line: core::str::from_utf8(text)
                .map_err(|_| LoadError::Malformed("the text of a module is not UTF-8"))?,
        });
    }
    Ok(modules)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn list<'a>(modules: &[Module<'a>]) -> Vec<(&'a str, &'a [u8])> {
        modules
            .iter()
            .map(|module| (module.command_line, module.bytes))
            .collect()
    }

    #[test]
    fn a_file_of_another_kind_is_the_only_module_and_an_empty_one_is_none() {
        assert_eq!(list(&unpack(b"").unwrap()), []);
        assert_eq!(
            list(&unpack(b"plain").unwrap()),
            [("", b"plain".as_slice())]
        );
    }

    #[test]
    fn a_file_cut_short_is_refused_wherever_it_is_cut() {
        let module = Module {
            bytes: b"bytes",
            command_line: "file words",
        };
        let file = pack(&[module, module]).unwrap();
        assert_eq!(unpack(&file).unwrap().len(), 2);
        for length in MAGIC.len()..file.len() {
            let refused = unpack(&file[..length]).unwrap_err();
            assert!(
                matches!(refused, LoadError::CutShort { have, .. } if have == length as u64),
                "{refused:?}"
            );
        }
    }

    #[test]
    fn too_many_modules_are_refused_on_both_sides() {
        let module = Module {
            bytes: b"",
            command_line: "",
        };
        let mut file = pack(&[module; MODULE_LIMIT]).unwrap();
        assert!(pack(&[module; MODULE_LIMIT + 1]).is_none());
        file[16] += 1;
        assert!(matches!(unpack(&file), Err(LoadError::Malformed(_))));
        let mut file = pack(&[Module {
            command_line: "x",
            ..module
        }])
        .unwrap();
        *file.last_mut().unwrap() = 0xFF;
        assert!(matches!(unpack(&file), Err(LoadError::Malformed(_))));
    }

    proptest! {
        #[test]
        fn modules_come_back_as_they_were(modules in proptest::collection::vec((".{0,12}", proptest::collection::vec(any::<u8>(), 0..99)), 0..9)) {
            let modules: Vec<Module<'_>> = modules
                .iter()
                .map(|(text, bytes)| Module { bytes, command_line: text })
                .collect();
            let file = pack(&modules).unwrap();
            prop_assert_eq!(list(&unpack(&file).unwrap()), list(&modules));
        }

        #[test]
        fn no_file_makes_it_panic(count in 0u8..70, bytes in proptest::collection::vec(0u8..6, 0..200)) {
            let mut file = MAGIC.to_vec();
            file.extend([count, 0, 0, 0]);
            file.extend(bytes);
            let _ = unpack(&file);
        }
    }
}
