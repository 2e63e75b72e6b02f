// Package host is one machine as the agent sees and changes it: facts, files, kernel settings and services. It
// decides nothing. Everything it touches lies below a root, which is / on a real host and a folder in tests; with
// another root than / it starts processes itself instead of asking systemd, which knows one / only.
package host

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"
)

// Mark is in the first lines of the files that a person may look at, so that nobody edits them in vain, and leave
// knows them again.
const Mark = "Made by plenum; changes are lost."

// A Host is one machine below a root.
type Host struct {
	root string
	init Services
}

// Open returns the host below root; "" is /.
func Open(root string) (*Host, error) {
	root, err := filepath.Abs(filepath.Join("/", root))
	if err != nil {
		return nil, err
	}
	h := &Host{root: root}
	if h.Systemd() {
		h.init = &systemd{h}
	} else {
		h.init = &children{h}
	}
	return h, nil
}

// Root is the folder that stands for /.
func (h *Host) Root() string { return h.root }

// Path is where a file of the host is found by this process.
func (h *Host) Path(elem ...string) string {
	return filepath.Join(append([]string{h.root}, elem...)...)
}

// Systemd reports whether services are units here.
func (h *Host) Systemd() bool {
	if h.root != "/" {
		return false
	}
	_, err := os.Stat("/run/systemd/system")
	return err == nil
}

// Services are what runs on the host for a long time.
func (h *Host) Services() Services { return h.init }

// Read returns what is in a file of the host.
func (h *Host) Read(path string) ([]byte, error) { return os.ReadFile(h.Path(path)) }

// Write writes a file of the host whole: after a power cut there is the old one or the new one. Its folder must exist.
func (h *Host) Write(path string, data []byte, mode fs.FileMode) error {
	path = h.Path(path)
	f, err := renameio.NewPendingFile(path, renameio.WithTempDir(filepath.Dir(path)), renameio.WithStaticPermissions(mode))
	if err != nil {
		return err
	}
	defer f.Cleanup()
	if _, err := f.Write(data); err != nil {
		return err
	}
	return f.CloseAtomicallyReplace()
}

// Mkdir makes a folder of the host, with those above it, unless it is there.
func (h *Host) Mkdir(path string, mode fs.FileMode) error {
	path = h.Path(path)
	if err := os.MkdirAll(path, mode); err != nil {
		return err
	}
	return os.Chmod(path, mode)
}

// Remove removes a file or a whole folder of the host, and what a Write of it left that was killed. What is not there is
// no error.
func (h *Host) Remove(path string) error {
	path = h.Path(path)
	torn, err := filepath.Glob(filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+"[0-9]*"))
	for _, p := range append(torn, path) {
		err = errors.Join(err, os.RemoveAll(p))
	}
	return err
}

// Install puts a program in place under its final name, whole. Where the source is on the same file system below
// another root it is linked, so that ten test hosts hold one copy; on a real host it is always copied.
func (h *Host) Install(source, path string) error {
	path = h.Path(path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	temporary := path + ".new"
	if err := os.Remove(temporary); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if h.root == "/" || os.Link(source, temporary) != nil {
		if err := copyFile(source, temporary); err != nil {
			return err
		}
	}
	return os.Rename(temporary, path)
}

func copyFile(source, path string) error {
	in, err := os.Open(source)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Sync(), out.Close())
}

// Sysctl returns a kernel setting, such as net.core.rmem_max.
func (h *Host) Sysctl(key string) (string, error) {
	b, err := os.ReadFile(h.sysctl(key))
	return string(bytes.TrimSpace(b)), err
}

// SetSysctl changes a kernel setting until the next boot.
func (h *Host) SetSysctl(key, value string) error {
	path := h.sysctl(key)
	if h.root != "/" { // a folder of a test: the machine's own settings are not its to change
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
	}
	if err := os.WriteFile(path, []byte(value+"\n"), 0o644); err != nil {
		return fmt.Errorf("sysctl %s: %w", key, err)
	}
	return nil
}

func (h *Host) sysctl(key string) string {
	return h.Path("proc/sys", strings.ReplaceAll(key, ".", "/"))
}

// Lock lets one process at a time change the host; wait says whether it waits for its turn. The caller closes what it
// returns; it is released, too, when the process ends however it ends.
func (h *Host) Lock(path string, wait bool) (io.Closer, error) {
	if err := os.MkdirAll(filepath.Dir(h.Path(path)), 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(h.Path(path), os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	how := unix.LOCK_EX
	if !wait {
		how |= unix.LOCK_NB
	}
	for {
		err = unix.Flock(int(f.Fd()), how)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, err
		}
	}
}

// atoi reads a number of the kernel's; 0 when it is none.
func atoi(s string) int64 {
	n, _ := strconv.ParseInt(strings.TrimSpace(s), 10, 64)
	return n
}

// Run runs a program of the machine to its end.
func Run(command ...string) error {
	out, err := exec.Command(command[0], command[1:]...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(command, " "), err, bytes.TrimSpace(out))
	}
	return nil
}
