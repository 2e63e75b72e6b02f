//go:build linux

package netlab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A Process runs on a host and does not outlive it. Its methods may be used from any goroutine.
type Process struct {
	host *Host
	cmd  *exec.Cmd
	out  *tail
	done chan struct{} // closed when it has ended
	err  error         // of Wait, readable when done is closed
}

// Start starts a program of the machine on the host, and captures what it writes.
func (h *Host) Start(name string, args ...string) *Process {
	h.lab.t.Helper()
	return h.StartCmd(exec.Command(name, args...))
}

// StartCmd starts a prepared command on the host, with environment, directory and files as it says. Output that it
// does not direct elsewhere is captured. The caller does not use cmd any more.
func (h *Host) StartCmd(cmd *exec.Cmd) *Process {
	h.lab.t.Helper()
	p, err := h.launch(cmd)
	h.lab.must(err, "%s: start %s", h.name, cmd.Path)
	return p
}

// Run runs a program on the host to its end and returns what it wrote, on both outputs.
func (h *Host) Run(name string, args ...string) (string, error) {
	p, err := h.launch(exec.Command(name, args...))
	if err != nil {
		return "", err
	}
	err = p.Wait()
	return p.Output(), err
}

// launch does what nsenter does, in place: a thread moves into the host's namespaces, starts the program and ends. So
// the process is a child of this one, with no helper in between that would swallow its signals.
func (h *Host) launch(cmd *exec.Cmd) (*Process, error) {
	if cmd.Err != nil {
		return nil, cmd.Err
	}
	p := &Process{host: h, cmd: cmd, out: newTail(), done: make(chan struct{})}
	if cmd.Stdout == nil {
		cmd.Stdout = p.out
	}
	if cmd.Stderr == nil {
		cmd.Stderr = p.out
	}
	if cmd.Dir == "" {
		dir, err := os.Getwd()
		if err != nil {
			return nil, err
		}
		cmd.Dir = dir
	}
	if cmd.WaitDelay == 0 {
		cmd.WaitDelay = 2 * time.Second // what it leaves behind may keep its output open
	}
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = !cmd.SysProcAttr.Setsid
	cmd.SysProcAttr.Pdeathsig = 0 // it would come at once, with the end of the thread below
	err := discard(func() error {
		err := h.enter(unix.CLONE_NEWPID, unix.CLONE_NEWIPC, unix.CLONE_NEWUTS, unix.CLONE_NEWNET, unix.CLONE_NEWNS)
		if err != nil {
			return err
		}
		return cmd.Start()
	})
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	h.processes = append(h.processes, p)
	h.mu.Unlock()
	go func() { // ends with the process, at the latest with the host, which waits for it
		defer close(p.done)
		p.err = cmd.Wait()
		p.out.close()
	}()
	return p, nil
}

// KillAll kills everything that runs on the host, daemons included, as a power cut would; devices and mounts stay.
func (h *Host) KillAll() {
	h.lab.t.Helper()
	h.Run("sh", "-c", "kill -9 -1") // all but the first process, and the shell itself
	h.mu.Lock()
	processes := h.processes
	h.mu.Unlock()
	for _, p := range processes {
		<-p.done
	}
	for limit := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) { // those who are no children of ours
		running, err := filepath.Glob(h.Path("/proc/[0-9]*"))
		if err == nil && len(running) <= 1 {
			return
		}
		if time.Now().After(limit) {
			h.lab.t.Fatalf("netlab: %s: processes survive: %v", h.name, running)
		}
	}
}

func (h *Host) logProcesses() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, p := range h.processes {
		out := p.Output()
		if len(out) > 4096 {
			out = "…" + out[len(out)-4096:]
		}
		h.lab.t.Logf("%s: %v: %s", h.name, p.cmd.Args, out)
	}
}

// PID returns the process id as this process sees it.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Signal sends sig to the process alone.
func (p *Process) Signal(sig os.Signal) error { return p.cmd.Process.Signal(sig) }

// Kill kills the process and those it started and left in its group, and waits for its end.
func (p *Process) Kill() {
	select {
	case <-p.done: // the number may be somebody else's by now
	default:
		unix.Kill(-p.PID(), unix.SIGKILL)
		p.cmd.Process.Kill()
	}
	<-p.done
}

// Stop sends SIGTERM and waits; after the grace it kills. It returns what Wait returns.
func (p *Process) Stop(grace time.Duration) error {
	p.Signal(unix.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(grace):
		p.Kill()
	}
	return p.Wait()
}

// Wait waits for the end of the process and returns how it ended, as exec.Cmd.Wait does, any number of times.
func (p *Process) Wait() error {
	<-p.done
	if errors.Is(p.err, exec.ErrWaitDelay) {
		return nil
	}
	return p.err
}

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Output returns what was captured so far, both outputs in the order written. Of much it keeps the last MiB.
func (p *Process) Output() string { return p.out.String() }

// Await waits until the output matches the expression and returns the match with its groups; it returns an error with
// the output when ctx or the process ends first.
func (p *Process) Await(ctx context.Context, expr string) ([]string, error) {
	re, err := regexp.Compile(expr)
	if err != nil {
		return nil, err
	}
	for {
		text, more := p.out.next()
		if m := re.FindStringSubmatch(text); m != nil {
			return m, nil
		}
		select {
		case <-more:
			if text, _ = p.out.next(); p.out.closed() {
				if m := re.FindStringSubmatch(text); m != nil {
					return m, nil
				}
				return nil, fmt.Errorf("%s: %s ended (%v) before %q: %s", p.host.name, p.cmd.Path, p.err, expr, text)
			}
		case <-ctx.Done():
			return nil, fmt.Errorf("%s: %s: no %q: %w: %s", p.host.name, p.cmd.Path, expr, ctx.Err(), text)
		}
	}
}

// A tail keeps the end of what a process writes and wakes those who wait for more.
type tail struct {
	mu   sync.Mutex
	buf  bytes.Buffer
	more chan struct{} // closed and replaced at every write; closed for good at the end
	end  bool
}

const tailBytes = 1 << 20

func newTail() *tail { return &tail{more: make(chan struct{})} }

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf.Write(b)
	if over := t.buf.Len() - tailBytes; over > tailBytes/2 {
		t.buf.Next(over)
	}
	if !t.end {
		close(t.more)
		t.more = make(chan struct{})
	}
	return len(b), nil
}

func (t *tail) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.end {
		t.end = true
		close(t.more)
	}
}

func (t *tail) closed() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.end
}

func (t *tail) next() (string, <-chan struct{}) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.buf.String(), t.more
}

func (t *tail) String() string {
	s, _ := t.next()
	return s
}
