package host

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestLibraries puts a program of the machine with nothing but its libraries into a folder, and runs it there.
func TestLibraries(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("chroot needs root")
	}
	program := "/usr/sbin/nft"
	if _, err := os.Stat(program); err != nil {
		t.Skipf("%v", err)
	}
	dir := t.TempDir()
	files := libraries([]string{program})
	files[program] = program
	for from, to := range files {
		b, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(to)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, to), b, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.Command("chroot", dir, program, "--version").CombinedOutput(); err != nil {
		t.Errorf("%v: %s; with %v", err, out, files)
	}
}
