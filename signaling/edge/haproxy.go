package edge

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"
)

// errRuntime is returned when HAProxy refuses a command of its runtime API.
var errRuntime = errors.New("HAProxy refuses")

// A runtime is HAProxy's admin socket (management guide, 9.3). Each command has a connection of its own, so that a
// restarted HAProxy needs no attention.
type runtime struct{ path string }

// do sends one command and returns what it is answered.
func (r runtime) do(ctx context.Context, command string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", r.path)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(deadline)
	}
	if _, err := io.WriteString(conn, command+"\n"); err != nil {
		return "", err
	}
	answer, err := io.ReadAll(io.LimitReader(conn, 16<<20))
	return strings.TrimSpace(string(answer)), err
}

// quiet sends a command that HAProxy answers with nothing, or with one of the given beginnings.
func (r runtime) quiet(ctx context.Context, command string, fine ...string) error {
	answer, err := r.do(ctx, command)
	if err != nil || answer == "" {
		return err
	}
	for _, f := range fine {
		if strings.HasPrefix(answer, f) {
			return nil
		}
	}
	command, _, _ = strings.Cut(command, "\n")
	return fmt.Errorf("%w %q: %s", errRuntime, command, answer)
}

// A server is one line of a backend as HAProxy has it.
type server struct {
	addr     string // host:port
	ready    bool   // not in maintenance or drain
	down     bool   // by HAProxy's own checks
	sessions string // how many there are
}

// servers lists a backend's servers by name.
func (r runtime) servers(ctx context.Context, backend string) (map[string]server, error) {
	answer, err := r.do(ctx, "show servers conn "+backend)
	if err != nil {
		return nil, err
	}
	state, err := r.do(ctx, "show servers state "+backend)
	if err != nil {
		return nil, err
	}
	all := map[string]server{}
	for _, line := range strings.Split(state, "\n") {
		f := strings.Fields(line)
		// be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state … srv_port is the 19th
		if len(f) < 19 || strings.HasPrefix(line, "#") {
			continue
		}
		all[f[3]] = server{addr: net.JoinHostPort(f[4], f[18]), ready: f[6] == "0", down: f[5] == "0" && f[6] == "0"}
	}
	for _, line := range strings.Split(answer, "\n") {
		f := strings.Fields(line) // bkname/svname bkid/svid addr port - purge_delay used_cur …
		if len(f) < 7 || strings.HasPrefix(line, "#") {
			continue
		}
		_, name, _ := strings.Cut(f[0], "/")
		if s, ok := all[name]; ok {
			s.sessions = f[6]
			all[name] = s
		}
	}
	return all, nil
}

// add makes a server that HAProxy checks by itself, and lets it in.
func (r runtime) add(ctx context.Context, backend, name, addr, options string) error {
	if err := r.quiet(ctx, fmt.Sprintf("add server %s/%s %s %s", backend, name, addr, options), "New server registered"); err != nil {
		return err
	}
	return r.admit(ctx, backend, name, options)
}

// admit lets a server in that is there.
func (r runtime) admit(ctx context.Context, backend, name, options string) error {
	if strings.Contains(options, "check") {
		if err := r.quiet(ctx, fmt.Sprintf("enable health %s/%s", backend, name)); err != nil {
			return err
		}
	}
	return r.quiet(ctx, fmt.Sprintf("set server %s/%s state ready", backend, name))
}

// remove takes a server out: it gets nothing new, and is gone once nobody is left on it.
func (r runtime) remove(ctx context.Context, backend, name string, s server) error {
	if s.ready {
		if err := r.quiet(ctx, fmt.Sprintf("set server %s/%s state maint", backend, name)); err != nil {
			return err
		}
	}
	if s.sessions != "0" {
		return nil
	}
	return r.quiet(ctx, fmt.Sprintf("del server %s/%s", backend, name), "Server deleted", "Server still has connections")
}

// move gives a server another address.
func (r runtime) move(ctx context.Context, backend, name, addr string) error {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return err
	}
	return r.quiet(ctx, fmt.Sprintf("set server %s/%s addr %s port %s", backend, name, host, port), "IP changed", "port changed", "no need", "nothing changed")
}
