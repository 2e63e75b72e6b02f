package main

import (
	"os"
	"runtime/debug"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// releaseImage lets go of the pages of the program itself, of which two thirds are for its start and for commands that this
// process is not. They stay in the page cache; those that are used come back with the first touch, sixteen at a time. It does
// nothing where a loader has written into them, which is in any but a static program.
func releaseImage() {
	if !static() {
		return
	}
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return
	}
	for line := range strings.Lines(string(maps)) {
		f := strings.Fields(line) // range, permissions, offset, device, inode, path
		if len(f) != 6 || f[5] != exe || f[1] != "r-xp" && f[1] != "r--p" {
			continue
		}
		from, to, _ := strings.Cut(f[0], "-")
		begin, err1 := strconv.ParseUint(from, 16, 64)
		end, err2 := strconv.ParseUint(to, 16, 64)
		if err1 == nil && err2 == nil {
			_, _, _ = unix.Syscall(unix.SYS_MADVISE, uintptr(begin), uintptr(end-begin), unix.MADV_DONTNEED)
		}
	}
}

// static reports whether the program was built without C and at a fixed address, as make build does.
func static() bool {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return false
	}
	cgo, mode := "", ""
	for _, s := range info.Settings {
		switch s.Key {
		case "CGO_ENABLED":
			cgo = s.Value
		case "-buildmode":
			mode = s.Value
		}
	}
	return cgo == "0" && mode == "exe"
}
