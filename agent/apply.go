package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"plenum/agent/host"
	"plenum/agent/join"
)

// A hand applies plans to a host. One at a time does: it holds the lock.
type hand struct {
	host     *host.Host
	say      func(format string, args ...any) // progress, a line each
	log      *slog.Logger
	binaries string // a folder with programs, besides what the join service has
	// fetch gets a program that no folder has.
	fetch func(ctx context.Context, b join.Binary, to string) error
	// crash is called before and after each effect, for the tests that kill at each of them.
	crash func(where string)
}

// crashHook is set by tests.
var crashHook = func(string) {}

// observe looks at what d asks for.
func (h *hand) observe(ctx context.Context, d Desired) (Observed, error) {
	o := Observed{Folders: map[string]fs.FileMode{}, Sysctls: map[string]int64{}, Programs: map[string]bool{},
		Files: map[string]string{}, Services: map[string]serviceState{}}
	for _, f := range d.Folders {
		if s, err := os.Stat(h.host.Path(f.Path)); err == nil && s.IsDir() {
			o.Folders[f.Path] = s.Mode().Perm()
		}
	}
	for _, s := range d.Sysctls {
		text, err := h.host.Sysctl(s.Key)
		if err == nil {
			n, _ := strconv.ParseInt(text, 10, 64)
			o.Sysctls[s.Key] = n
		}
	}
	for _, p := range d.Programs {
		_, err := os.Stat(h.host.Path(program(p))) // its name is its digest, and it came there whole
		o.Programs[program(p)] = err == nil
	}
	for _, f := range d.Files {
		b, err := h.host.Read(f.Path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return o, err
		}
		s, err := os.Stat(h.host.Path(f.Path))
		if err != nil {
			return o, err
		}
		o.Files[f.Path] = digest(b, s.Mode())
	}
	for _, s := range d.Services {
		state, err := h.host.Services().State(ctx, s.Name)
		if err != nil {
			return o, err
		}
		mark := h.mark(s.Name)
		mark.State = state
		o.Services[s.Name] = mark
	}
	return o, nil
}

// mark is what the service's files were when it read them. The file is written after the service has: a hand that is
// killed in between starts it once more.
func (h *hand) mark(name string) (s serviceState) {
	if b, err := h.host.Read(markFile(name)); err == nil {
		_ = json.Unmarshal(b, &s)
	}
	return s
}

func markFile(name string) string { return stateDir + "/run/" + name + ".read" }

// apply brings the host to d and reports how many steps that took.
func (h *hand) apply(ctx context.Context, d Desired) (int, error) {
	n := 0
	for range 3 { // what one step writes may be another's reason
		o, err := h.observe(ctx, d)
		if err != nil {
			return n, err
		}
		steps := Plan(d, o)
		if len(steps) == 0 {
			return n, nil
		}
		for _, s := range steps {
			if err := ctx.Err(); err != nil {
				return n, err
			}
			h.crash("before " + s.What)
			if err := h.step(ctx, d, s); err != nil {
				return n, fmt.Errorf("%s: %w", s.What, err)
			}
			h.crash("after " + s.What)
			n++
		}
	}
	return n, nil
}

func (h *hand) step(ctx context.Context, d Desired, s Step) error {
	h.say("%s: %s", s.What, s.Why)
	switch {
	case s.folder != nil:
		return h.host.Mkdir(s.folder.Path, s.folder.Mode)
	case s.sysctl != nil:
		if err := h.noteSysctl(*s.sysctl); err != nil {
			return err
		}
		return h.host.SetSysctl(s.sysctl.Key, strconv.FormatInt(s.sysctl.Min, 10))
	case s.program != nil:
		return h.install(ctx, *s.program)
	case s.file != nil:
		return h.host.Write(s.file.Path, s.file.Data, s.file.Mode)
	}
	var err error
	if s.act == "reload" {
		err = h.host.Services().Signal(ctx, s.service.Name, syscall.SIGHUP)
	} else {
		err = h.host.Services().Start(ctx, s.service.Unit)
	}
	if err != nil {
		return err
	}
	return h.remember(d, *s.service, s.act == "reload")
}

// sysctlFile is what kernel settings were before they were raised, by key.
const sysctlFile = stateDir + "/sysctl.json"

// noteSysctl keeps what a setting was before it is changed for the first time, so that leave can put it back.
func (h *hand) noteSysctl(s Sysctl) error {
	was, err := h.sysctlsBefore()
	if err != nil || was[s.Key] != "" {
		return err
	}
	if was[s.Key], err = h.host.Sysctl(s.Key); err != nil {
		return nil // there is none: setting it says so
	}
	return h.host.Write(sysctlFile, marshal(was), 0o600)
}

func (h *hand) sysctlsBefore() (map[string]string, error) {
	was := map[string]string{}
	b, err := h.host.Read(sysctlFile)
	if err == nil {
		err = json.Unmarshal(b, &was)
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return was, err
}

// restoreSysctls puts back the settings that were raised, where nobody has changed them since.
func (h *hand) restoreSysctls(raised []Sysctl) error {
	was, err := h.sysctlsBefore()
	for _, s := range raised {
		old, now := was[s.Key], ""
		if old != "" {
			now, _ = h.host.Sysctl(s.Key)
		}
		if now == strconv.FormatInt(s.Min, 10) {
			err = errors.Join(err, h.host.SetSysctl(s.Key, old))
		}
	}
	return err
}

// remember writes which files the service has read.
func (h *hand) remember(d Desired, s Service, reloaded bool) error {
	wanted := map[string]string{}
	for _, f := range d.Files {
		b, err := h.host.Read(f.Path)
		if err != nil {
			return err
		}
		info, err := os.Stat(h.host.Path(f.Path))
		if err != nil {
			return err
		}
		wanted[f.Path] = digest(b, info.Mode())
	}
	m := serviceState{Restart: files(s.Restart, wanted), Reload: files(s.Reload, wanted)}
	if reloaded {
		m.Restart = h.mark(s.Name).Restart
	}
	b, _ := json.Marshal(m)
	if err := h.host.Mkdir(stateDir+"/run", 0o700); err != nil {
		return err
	}
	return h.host.Write(markFile(s.Name), b, 0o600)
}

// install puts a program in place: from the folder of the command line, or from the join service. What it is was said
// by its SHA-256, so where it comes from does not matter.
func (h *hand) install(ctx context.Context, b join.Binary) error {
	target := program(b)
	if h.binaries != "" {
		source := filepath.Join(h.binaries, b.Name)
		if got, err := sum(source); err == nil && bytes.Equal(got, b.SHA256) {
			return h.installed(b, h.host.Install(source, target))
		}
	}
	if h.fetch == nil {
		return fmt.Errorf("no %s with SHA-256 %x in %q: give --binaries a folder that has it", b.Name, b.SHA256, h.binaries)
	}
	if err := h.host.Mkdir(filepath.Dir(target), 0o755); err != nil {
		return err
	}
	temporary := h.host.Path(target) + ".fetched"
	defer os.Remove(temporary)
	if err := h.fetch(ctx, b, temporary); err != nil {
		return err
	}
	got, err := sum(temporary)
	if err != nil {
		return err
	}
	if !bytes.Equal(got, b.SHA256) {
		return fmt.Errorf("%s: the join service sent SHA-256 %x instead of %x", b.Name, got, b.SHA256)
	}
	if err := os.Chmod(temporary, 0o755); err != nil {
		return err
	}
	return h.installed(b, os.Rename(temporary, h.host.Path(target)))
}

// installed gives our own program a name without a version, for people and units of theirs.
func (h *hand) installed(b join.Binary, err error) error {
	if err != nil || b.Name != "plenum" {
		return err
	}
	return h.host.Install(h.host.Path(program(b)), binDir+"/plenum")
}

// until repeats f every 100 ms until it is content, and says what it waits for.
func (h *hand) until(ctx context.Context, what string, limit time.Duration, f func(context.Context) error) error {
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	said := time.Now()
	for {
		err := f(limited)
		if err == nil {
			return nil
		}
		if time.Since(said) > time.Second {
			h.say("waiting for %s: %v", what, err)
			said = time.Now().Add(4 * time.Second)
		}
		select {
		case <-limited.Done():
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return fmt.Errorf("waited %s for %s: %w", limit, what, err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// get asks an API on this host; the answer is at most 1 MiB.
func get(ctx context.Context, c *http.Client, url string) (int, []byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, nil, err
	}
	return do(c, req)
}

// do is get with a request of one's own.
func do(c *http.Client, req *http.Request) (int, []byte, error) {
	res, err := c.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	return res.StatusCode, b, err
}
