package host

import (
	"debug/elf"
	"io"
	"path/filepath"
	"strings"
)

// libraryDirs are where Debian's loader looks.
var libraryDirs = []string{"/lib/x86_64-linux-gnu", "/lib/aarch64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/lib64", "/lib", "/usr/lib"}

// libraries finds what programs load, the loader included: the real file of each, for a link is none in a chroot, and the
// path by which it is looked for. What is not found is left out.
func libraries(programs []string) map[string]string {
	all := map[string]string{}
	todo := append([]string(nil), programs...)
	seen := map[string]bool{}
	for len(todo) > 0 {
		file := todo[0]
		todo = todo[1:]
		if seen[file] {
			continue
		}
		seen[file] = true
		names, loader := needed(file)
		if real, err := filepath.EvalSymlinks(loader); err == nil && loader != "" {
			all[real] = loader
		}
		for _, name := range names {
			for _, dir := range libraryDirs {
				path := filepath.Join(dir, name)
				if real, err := filepath.EvalSymlinks(path); err == nil {
					if _, there := all[real]; !there { // the loader is a library too, looked for by its own path
						all[real] = path
					}
					todo = append(todo, real)
					break
				}
			}
		}
	}
	return all
}

// needed reads which libraries an ELF file names, and the loader that it wants.
func needed(path string) (names []string, loader string) {
	f, err := elf.Open(path)
	if err != nil {
		return nil, ""
	}
	defer f.Close()
	names, _ = f.ImportedLibraries()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			b, _ := io.ReadAll(io.LimitReader(p.Open(), 4096))
			loader = strings.TrimRight(string(b), "\x00")
		}
	}
	return names, loader
}
