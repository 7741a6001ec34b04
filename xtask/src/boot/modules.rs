//! `--module FILE`, several times and each with words for it: made into the one file that goes beside the kernel.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use outpost_hv::load::bzimage::is_bzimage;
use outpost_hv::load::multiboot::{Module, is_multiboot, pack};

/// Linux finds the end of one archive in a ramdisk, and the next at a multiple of this.
const ARCHIVE_ALIGNMENT: usize = 4;

/// Makes one file of `arguments`, for `kernel`. None if there are none.
///
/// A Multiboot kernel gets them as modules, in their order, each with the argument as its text. Linux gets one ramdisk, as if
/// the archives had been joined, and has no place for words.
///
/// # Errors
/// When a file cannot be read, or the kernel cannot take what it is given.
pub fn join(kernel: &[u8], arguments: &[String]) -> Result<Option<Vec<u8>>> {
    let read = |argument: &String| {
        let (path, words) = split(argument, Path::is_file);
        let bytes = std::fs::read(&path)
            .with_context(|| format!("cannot read the module {}", path.display()))?;
        anyhow::Ok((argument.clone(), words, bytes))
    };
    let files: Vec<(String, bool, Vec<u8>)> = arguments.iter().map(read).collect::<Result<_>>()?;
    if files.is_empty() {
        return Ok(None);
    }
    if is_multiboot(kernel) && !is_bzimage(kernel) {
        let modules: Vec<Module<'_>> = files
            .iter()
            .map(|(argument, _, bytes)| Module {
                bytes,
                command_line: argument,
            })
            .collect();
        return match pack(&modules) {
            Some(packed) => Ok(Some(packed)),
            None => bail!(
                "a Multiboot kernel takes at most 64 modules, each below 4 GiB; there are {}",
                modules.len()
            ),
        };
    }
    let mut ramdisk = Vec::new();
    for (argument, words, bytes) in files {
        if words {
            bail!(
                "--module {argument:?}: Linux takes no words with a ramdisk; --guest-cmdline is for them"
            );
        }
        ramdisk.resize(ramdisk.len().next_multiple_of(ARCHIVE_ALIGNMENT), 0);
        ramdisk.extend(bytes);
    }
    Ok(Some(ramdisk))
}

/// The file of an argument, and whether words follow: the whole argument if there is such a file, else up to the first space.
fn split(argument: &str, is_file: impl Fn(&Path) -> bool) -> (PathBuf, bool) {
    match argument.split_once(' ') {
        Some((file, _)) if !is_file(Path::new(argument)) => (file.into(), true),
        _ => (argument.into(), false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use outpost_hv::load::multiboot::unpack;

    /// A kernel as far as a look at it can tell.
    fn multiboot() -> Vec<u8> {
        [0x1BAD_B002_u32, 0, 0x1BAD_B002_u32.wrapping_neg()]
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect()
    }

    fn linux() -> Vec<u8> {
        let mut file = vec![0; 1024];
        file[0x1FE..0x200].copy_from_slice(&[0x55, 0xAA]);
        file[0x202..0x206].copy_from_slice(b"HdrS");
        file
    }

    #[test]
    fn a_multiboot_kernel_gets_each_module_with_its_words() {
        let folder = tempfile::tempdir().unwrap();
        let name = |name: &str| folder.path().join(name).display().to_string();
        std::fs::write(name("first"), b"1").unwrap();
        std::fs::write(name("second"), b"22").unwrap();
        let arguments = [name("first"), format!("{} a=b c", name("second"))];
        let packed = join(&multiboot(), &arguments).unwrap().unwrap();
        let modules = unpack(&packed).unwrap();
        let found: Vec<_> = modules
            .iter()
            .map(|module| (module.command_line, module.bytes))
            .collect();
        assert_eq!(
            found,
            [
                (arguments[0].as_str(), b"1".as_slice()),
                (arguments[1].as_str(), b"22".as_slice())
            ]
        );
        assert_eq!(join(&multiboot(), &[]).unwrap(), None);
        let many = vec![name("first"); 65];
        assert!(join(&multiboot(), &many).is_err());
        let missing = join(&multiboot(), &[name("third")]).unwrap_err();
        assert!(format!("{missing:#}").contains("third"), "{missing:#}");
    }

    #[test]
    fn linux_gets_one_ramdisk_and_no_words() {
        let folder = tempfile::tempdir().unwrap();
        let name = |name: &str| folder.path().join(name).display().to_string();
        std::fs::write(name("first"), b"1").unwrap();
        std::fs::write(name("second"), b"22").unwrap();
        let ramdisk = join(&linux(), &[name("first"), name("second")]).unwrap();
        assert_eq!(
            ramdisk.as_deref(),
            Some([b'1', 0, 0, 0, b'2', b'2'].as_slice())
        );
        let words = join(&linux(), &[format!("{} quiet", name("first"))]).unwrap_err();
        assert!(words.to_string().contains("--guest-cmdline"), "{words}");
    }

    #[test]
    fn a_file_with_a_space_in_its_name_is_found() {
        let there = |path: &Path| path == Path::new("a file");
        assert_eq!(split("a file", there), ("a file".into(), false));
        assert_eq!(split("another file", there), ("another".into(), true));
        assert_eq!(split("plain", there), ("plain".into(), false));
    }
}
