package host

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"

	"github.com/coreos/go-systemd/v22/dbus"
)

// systemd are services as units in /etc/systemd/system.
type systemd struct{ h *Host }

const unitDir = "etc/systemd/system/"

// digestLine keeps the unit's digest in its file; systemd ignores keys that begin with X-.
const digestLine = "X-Plenum-Digest="

// Text is the unit's file.
func (u Unit) Text() string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("# %s", Mark)
	line("[Unit]\nDescription=%s", u.Description)
	after := "network-online.target"
	for _, a := range u.After {
		after += " " + a + ".service"
	}
	line("After=%s\nWants=network-online.target", after)
	for _, f := range u.Requires {
		line("ConditionPathExists=%s", f)
	}
	line("StartLimitIntervalSec=0\n%s%s\n", digestLine, u.Digest())
	line("[Service]\nExecStart=%s\nExecReload=/bin/kill -HUP $MAINPID\nRestart=always\nRestartSec=1", quote(u.Exec))
	for _, e := range u.Env {
		line("Environment=%s", quote([]string{e}))
	}
	line("LimitNOFILE=%d", cmp.Or(u.NoFile, 65536))
	for _, o := range u.Options {
		line("%s", o)
	}
	line("\n[Install]\nWantedBy=multi-user.target")
	return b.String()
}

// quote writes a command line as systemd reads it (systemd.service(5), COMMAND LINES).
func quote(words []string) string {
	out := make([]string, len(words))
	for i, w := range words {
		w = strings.NewReplacer(`%`, `%%`, `$`, `$$`, `\`, `\\`, `"`, `\"`).Replace(w)
		if strings.ContainsAny(w, " \t;'\"") {
			w = `"` + w + `"`
		}
		out[i] = w
	}
	return strings.Join(out, " ")
}

func (s *systemd) with(ctx context.Context, f func(*dbus.Conn) error) error {
	c, err := dbus.NewSystemConnectionContext(ctx)
	if err != nil {
		return fmt.Errorf("systemd: %w", err)
	}
	defer c.Close()
	return f(c)
}

func (s *systemd) State(ctx context.Context, name string) (st State, err error) {
	text, err := s.h.Read(unitDir + name + ".service")
	if errors.Is(err, fs.ErrNotExist) {
		return st, nil
	}
	if err != nil {
		return st, err
	}
	if _, rest, ok := strings.Cut(string(text), digestLine); ok {
		st.Unit, _, _ = strings.Cut(rest, "\n")
	}
	err = s.with(ctx, func(c *dbus.Conn) error {
		units, err := c.ListUnitsByNamesContext(ctx, []string{name + ".service"})
		for _, u := range units {
			st.Running = u.ActiveState == "active" || u.ActiveState == "activating" || u.ActiveState == "reloading"
		}
		return err
	})
	return st, err
}

func (s *systemd) Start(ctx context.Context, u Unit) error {
	file := u.Name + ".service"
	if err := s.h.Write(unitDir+file, []byte(u.Text()), 0o644); err != nil {
		return err
	}
	return s.with(ctx, func(c *dbus.Conn) error {
		if err := c.ReloadContext(ctx); err != nil {
			return err
		}
		if _, _, err := c.EnableUnitFilesContext(ctx, []string{file}, false, true); err != nil {
			return err
		}
		return wait(ctx, file, func(done chan<- string) error {
			_, err := c.RestartUnitContext(ctx, file, "replace", done)
			return err
		})
	})
}

// wait waits for a job of systemd's.
func wait(ctx context.Context, unit string, start func(chan<- string) error) error {
	done := make(chan string, 1)
	if err := start(done); err != nil {
		return fmt.Errorf("%s: %w", unit, err)
	}
	select {
	case r := <-done:
		if r != "done" {
			return fmt.Errorf("%s: %s; journalctl -u %s tells why", unit, r, unit)
		}
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Adopt leaves it to systemd to know its units.
func (s *systemd) Adopt(Unit) error { return nil }

func (s *systemd) Signal(ctx context.Context, name string, sig syscall.Signal) error {
	return s.with(ctx, func(c *dbus.Conn) error {
		return c.KillUnitWithTarget(ctx, name+".service", dbus.Main, int32(sig))
	})
}

func (s *systemd) Stop(ctx context.Context, name string) error {
	file := name + ".service"
	if _, err := s.h.Read(unitDir + file); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return s.with(ctx, func(c *dbus.Conn) error {
		err := wait(ctx, file, func(done chan<- string) error {
			_, err := c.StopUnitContext(ctx, file, "replace", done)
			return err
		})
		if err != nil {
			return err
		}
		if _, err := c.DisableUnitFilesContext(ctx, []string{file}, false); err != nil {
			return err
		}
		if err := s.h.Remove(unitDir + file); err != nil {
			return err
		}
		return c.ReloadContext(ctx)
	})
}
