package host

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// children are services without systemd: processes in sessions of their own that outlive whoever started them. A file
// says which process it is; it is believed only while the kernel knows a process with that number and that start
// time, so a number that was given to another one after a reboot harms nobody. Nothing starts a child again but the
// next look at it: plenum run agent looks every few seconds.
type children struct{ h *Host }

// stopAfter is how long a child has to end by itself.
const stopAfter = 10 * time.Second

// A child is what the file says.
type child struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // of /proc/PID/stat, ticks since boot
	Boot  string `json:"boot"`  // the kernel's boot id
	Unit  string `json:"unit"`
}

func (c *children) file(name string) string { return "var/lib/plenum/run/" + name + ".json" }

func (c *children) load(name string) (child, error) {
	var k child
	b, err := c.h.Read(c.file(name))
	if errors.Is(err, fs.ErrNotExist) {
		return k, nil
	}
	if err != nil {
		return k, err
	}
	if json.Unmarshal(b, &k) != nil { // half a file after a power cut is no file
		return child{}, nil
	}
	return k, nil
}

// alive reports whether the process of the file still runs.
func (k child) alive() bool {
	if k.PID <= 1 || k.Boot != bootID() {
		return false
	}
	start, zombie, err := processStart(k.PID)
	return err == nil && !zombie && start == k.Start
}

func bootID() string {
	b, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return string(bytes.TrimSpace(b))
}

// processStart reads the start time of a process, and whether it has ended and waits for its parent (proc(5)).
func processStart(pid int) (start uint64, zombie bool, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, false, err
	}
	_, rest, ok := strings.Cut(string(b[bytes.LastIndexByte(b, ')'):]), " ") // the name may hold anything
	fields := strings.Fields(rest)
	if !ok || len(fields) < 20 {
		return 0, false, fmt.Errorf("/proc/%d/stat: %q", pid, b)
	}
	return uint64(atoi(fields[19])), fields[0] == "Z" || fields[0] == "X", nil
}

func (c *children) State(_ context.Context, name string) (State, error) {
	k, err := c.load(name)
	if err != nil || !k.alive() {
		return State{}, err
	}
	return State{Running: true, Unit: k.Unit}, nil
}

func (c *children) Start(ctx context.Context, u Unit) error {
	if err := c.Stop(ctx, u.Name); err != nil {
		return err
	}
	for _, f := range u.Requires {
		if _, err := os.Stat(c.h.Path(f)); err != nil {
			return fmt.Errorf("%s needs %w", u.Name, err)
		}
	}
	for _, dir := range []string{"var/lib/plenum/run", "var/log/plenum"} {
		if err := os.MkdirAll(c.h.Path(dir), 0o750); err != nil {
			return err
		}
	}
	log, err := os.OpenFile(c.h.Path("var/log/plenum", u.Name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		return err
	}
	defer log.Close()
	rotate(log)
	// The number is written before the program starts, by the shell that becomes it: killed in between, nothing
	// runs that no file tells of.
	cmd := exec.Command("/bin/sh", append([]string{"-c", `read -r go && [ "$go" = go ] && exec "$@" </dev/null`, "sh", c.h.Path(u.Exec[0])}, u.Exec[1:]...)...)
	cmd.Env = append([]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=" + c.h.Path("var/lib/plenum")}, u.Env...)
	cmd.Dir = c.h.Path("var/lib/plenum")
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	gate, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("%s: %w", u.Name, err)
	}
	pid := cmd.Process.Pid
	go func() { _ = cmd.Wait() }() // for as long as this process lives it is the one to reap its children
	if err := limitFiles(pid, cmp.Or(u.NoFile, 65536)); err != nil {
		return errors.Join(fmt.Errorf("%s: limit of open files: %w", u.Name, err), cmd.Process.Kill())
	}
	if err := c.note(u, pid); err != nil {
		return errors.Join(fmt.Errorf("%s: %w", u.Name, err), cmd.Process.Kill())
	}
	_, err = gate.Write([]byte("go\n"))
	return err
}

// note writes which process the service is.
func (c *children) note(u Unit, pid int) error {
	start, _, err := processStart(pid)
	if err != nil {
		return err
	}
	text, err := json.Marshal(child{PID: pid, Start: start, Boot: bootID(), Unit: u.Digest()})
	if err != nil {
		return err
	}
	return c.h.Write(c.file(u.Name), text, 0o600)
}

func (c *children) Adopt(u Unit) error {
	k, err := c.load(u.Name)
	if err != nil || k.alive() && k.PID == os.Getpid() {
		return err
	}
	if k.alive() {
		return fmt.Errorf("%s runs already, as process %d", u.Name, k.PID)
	}
	if err := os.MkdirAll(c.h.Path("var/lib/plenum/run"), 0o750); err != nil {
		return err
	}
	return c.note(u, os.Getpid())
}

// limitFiles lets a process have so many files open, or as many as a container allows.
func limitFiles(pid int, n uint64) error {
	err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: n, Max: n}, nil)
	if !errors.Is(err, unix.EPERM) {
		return err
	}
	var have unix.Rlimit
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &have); err != nil {
		return err
	}
	n = min(n, have.Max)
	return unix.Prlimit(pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: n, Max: have.Max}, nil)
}

// rotate empties a log that has grown beyond 16 MiB, when its service starts.
func rotate(log *os.File) {
	if s, err := log.Stat(); err == nil && s.Size() > 16<<20 {
		_ = log.Truncate(0)
	}
}

func (c *children) Signal(_ context.Context, name string, sig syscall.Signal) error {
	k, err := c.load(name)
	if err != nil {
		return err
	}
	if !k.alive() {
		return fmt.Errorf("%s does not run", name)
	}
	return unix.Kill(k.PID, sig)
}

func (c *children) Stop(ctx context.Context, name string) error {
	k, err := c.load(name)
	if err != nil {
		return err
	}
	if k.alive() {
		if err := unix.Kill(k.PID, unix.SIGTERM); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("%s: %w", name, err)
		}
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for limit := time.Now().Add(stopAfter); k.alive(); {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return ctx.Err()
			}
			if time.Now().After(limit) {
				_ = unix.Kill(k.PID, unix.SIGKILL)
			}
		}
	}
	return c.h.Remove(c.file(name))
}

// Digest tells units apart: one that differs is started anew.
func (u Unit) Digest() string {
	text, _ := json.Marshal(u)
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:8])
}
