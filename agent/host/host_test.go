package host

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "start-a-child" { // and end before it does
		h, err := Open(os.Args[2])
		if err == nil {
			err = h.Services().Start(context.Background(), sleeper(os.Args[3]))
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if len(os.Args) > 2 && os.Args[1] == "write-for-ever" {
		h, err := Open(os.Args[2])
		for i := 0; err == nil; i++ {
			err = h.Write("file", bytes.Repeat([]byte{'a' + byte(i%2)}, 1<<20), 0o600)
		}
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}

// sleeper runs until it is told to stop, and says at SIGHUP that it read its files again.
func sleeper(mark string) Unit {
	return Unit{Name: "plenum-sleeper", Description: "sleeps", Exec: []string{"/bin/sh", "-c",
		`trap 'echo again' HUP; trap 'exit 0' TERM; echo "` + mark + `"; while :; do sleep 0.05; done`}}
}

func open(t *testing.T) *Host {
	t.Helper()
	h, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	// The program of a unit lies below the root.
	if err := os.Symlink("/bin", h.Path("bin")); err != nil {
		t.Fatal(err)
	}
	if err := h.Mkdir("var/lib/plenum", 0o755); err != nil {
		t.Fatal(err)
	}
	return h
}

func state(t *testing.T, h *Host) State {
	t.Helper()
	s, err := h.Services().State(t.Context(), "plenum-sleeper")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func until(t *testing.T, what string, f func() bool) {
	t.Helper()
	for limit := time.Now().Add(20 * time.Second); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatalf("after 20 s still not: %s", what)
		}
	}
}

func log(h *Host) string {
	b, _ := h.Read("var/log/plenum/plenum-sleeper.log")
	return string(b)
}

// A child outlives who started it, is known again by another process, and is started anew after kill -9.
func TestChildOutlivesItsStarter(t *testing.T) {
	h := open(t)
	if s := state(t, h); s.Running {
		t.Fatalf("runs before it was started: %+v", s)
	}
	if out, err := exec.Command(os.Args[0], "start-a-child", h.Root(), "first").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Cleanup(func() { _ = h.Services().Stop(context.Background(), "plenum-sleeper") })
	first := sleeper("first")
	if s := state(t, h); !s.Running || s.Unit != first.Digest() {
		t.Fatalf("not adopted: %+v", s)
	}
	until(t, "it writes to its log", func() bool { return strings.Contains(log(h), "first") })
	if err := h.Services().Signal(t.Context(), "plenum-sleeper", syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	until(t, "it reads again", func() bool { return strings.Contains(log(h), "again") })
	if err := h.Services().Signal(t.Context(), "plenum-sleeper", syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	until(t, "it is seen dead", func() bool { return !state(t, h).Running })
	if err := h.Services().Start(t.Context(), sleeper("second")); err != nil {
		t.Fatal(err)
	}
	if s := state(t, h); !s.Running || s.Unit == first.Digest() {
		t.Fatalf("the second one: %+v", s)
	}
	if err := h.Services().Stop(t.Context(), "plenum-sleeper"); err != nil {
		t.Fatal(err)
	}
	if s := state(t, h); s.Running {
		t.Fatalf("runs after Stop: %+v", s)
	}
}

// A number that belongs to somebody else after a reboot is nobody's child.
func TestChildOfAnotherBoot(t *testing.T) {
	h := open(t)
	for _, text := range []string{
		fmt.Sprintf(`{"pid":%d,"start":1,"boot":%q}`, os.Getpid(), bootID()),
		fmt.Sprintf(`{"pid":%d,"start":%d,"boot":"another"}`, os.Getpid(), must(t)),
		`{"pid":1,"start":0}`, `{"pid":`, "",
	} {
		if err := h.Mkdir("var/lib/plenum/run", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := h.Write("var/lib/plenum/run/plenum-sleeper.json", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if state(t, h).Running {
			t.Errorf("%s: believed", text)
		}
		if err := h.Services().Stop(t.Context(), "plenum-sleeper"); err != nil {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func must(t *testing.T) uint64 {
	t.Helper()
	start, _, err := processStart(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	return start
}

// Units are as systemd wants them.
func TestUnitText(t *testing.T) {
	u := Unit{Name: "plenum-test", Description: "a test", Exec: []string{"/bin/sh", "-c", `echo "a b" $HOME 100%`}, Env: []string{"A=b c"},
		After: []string{"plenum-other"}, Requires: []string{"/etc/passwd"}, Options: []string{"KillMode=process"}}
	text := u.Text()
	for _, want := range []string{`ExecStart=/bin/sh -c "echo \"a b\" $$HOME 100%%"`, "After=network-online.target plenum-other.service", digestLine + u.Digest(), `Environment="A=b c"`} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	verify, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("no systemd-analyze here")
	}
	path := filepath.Join(t.TempDir(), "plenum-test.service")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(verify, "verify", "--man=no", path).CombinedOutput(); err != nil || strings.Contains(string(out), path) {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
}

func TestLockIsForOne(t *testing.T) {
	h := open(t)
	first, err := h.Lock("run/plenum/lock", false)
	if err != nil {
		t.Fatal(err)
	}
	if second, err := h.Lock("run/plenum/lock", false); err == nil {
		second.Close()
		t.Error("two have the lock")
	}
	first.Close()
	second, err := h.Lock("run/plenum/lock", false)
	if err != nil {
		t.Fatal(err)
	}
	second.Close()
}

func TestFacts(t *testing.T) {
	h := open(t)
	f, err := h.Facts()
	if err != nil || f.CPUs < 1 || f.Memory < 1<<26 || f.Name == "" {
		t.Fatalf("%+v: %v", f, err)
	}
	for _, a := range f.Addresses {
		l, err := net.Listen("tcp", net.JoinHostPort(a.String(), "0"))
		if err != nil {
			t.Errorf("%s is not this host's: %v", a, err)
			continue
		}
		l.Close()
	}
}

// Sysctls of a test's root are files in it.
func TestSysctl(t *testing.T) {
	h := open(t)
	if err := h.SetSysctl("net.core.rmem_max", "16777216"); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(h.Path("proc/sys/net/core/rmem_max"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if line, _ := bufio.NewReader(f).ReadString('\n'); line != "16777216\n" {
		t.Errorf("wrote %q", line)
	}
	if got, err := h.Sysctl("net.core.rmem_max"); got != "16777216" || err != nil {
		t.Errorf("read %q, %v", got, err)
	}
}

// A file has the mode that was asked for, whatever it had before, and is whole whatever it was.
func TestWrite(t *testing.T) {
	h := open(t)
	for _, mode := range []os.FileMode{0o600, 0o644, 0o600} {
		if err := h.Write("var/lib/plenum/file", []byte("text"), mode); err != nil {
			t.Fatal(err)
		}
		if s, err := os.Stat(h.Path("var/lib/plenum/file")); err != nil || s.Mode() != mode {
			t.Errorf("%v, %v; want %v", s.Mode(), err, mode)
		}
	}
}

// Whoever is killed while it writes leaves the old file or the new one, and nothing in between.
func TestKilledWhileWriting(t *testing.T) {
	h := open(t)
	seen := map[byte]int{}
	for i := range 20 {
		cmd := exec.Command(os.Args[0], "write-for-ever", h.Root())
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		before, _ := os.Stat(h.Path("file"))
		until(t, "it writes", func() bool {
			now, err := os.Stat(h.Path("file"))
			return err == nil && (before == nil || !os.SameFile(now, before) || now.ModTime() != before.ModTime())
		})
		time.Sleep(time.Duration(i) * 731 * time.Microsecond) // killed at another place each time
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		b, err := h.Read("file")
		if err != nil || len(b) != 1<<20 || !bytes.Equal(b, bytes.Repeat(b[:1], len(b))) {
			t.Fatalf("%d bytes, %v", len(b), err)
		}
		seen[b[0]]++
	}
	t.Logf("left behind: %v", seen)
	if err := h.Remove("file"); err != nil {
		t.Error(err)
	}
	if left, err := filepath.Glob(h.Path(".file*")); len(left) > 0 || err != nil {
		t.Errorf("halves are left: %v, %v", left, err)
	}
}
