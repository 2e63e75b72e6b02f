//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"plenum/overlay/netlab/stack"
)

func (m *member) has(role string) bool { return slices.Contains(strings.Split(m.roles, ","), role) }
func (m *member) server() bool         { return m.has("server") }

// join brings the host into the cluster.
func (m *member) join() error {
	out, err := m.c.first().output("plenum", "token", "create", "--region", m.region, "--roles", m.roles)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(strings.Fields(out), func(word string) bool { return strings.HasPrefix(word, "plenum-") })
	if i < 0 {
		return fmt.Errorf("plenum token create wrote %q", out)
	}
	args := []string{"join", strings.Fields(out)[i], "--host", m.name, "--binaries", m.c.binaries}
	if m.public != "" {
		args = append(args, "--public", m.public)
	}
	return m.plenum(args...)
}

// plenum runs a command of the binary on the host and prints what it says. If it fails, so does it print what every host
// has to say.
func (m *member) plenum(args ...string) error {
	out := &lines{m: m}
	cmd, err := m.command("plenum", args...)
	if err != nil {
		return err
	}
	cmd.Stdout, cmd.Stderr = out, out
	if err := m.StartCmd(cmd).Wait(); err != nil {
		if m.c.ctx.Err() != nil {
			return context.Cause(m.c.ctx)
		}
		m.c.confess()
		return fmt.Errorf("%s: plenum %s: %w", m.name, strings.Join(args[:min(2, len(args))], " "), err)
	}
	return nil
}

// output runs plenum, consul, nomad or any program of the machine on the host, the first three as the cluster's operator,
// and returns what it writes to standard output.
func (m *member) output(name string, args ...string) (string, error) {
	cmd, err := m.command(name, args...)
	if err != nil {
		return "", err
	}
	var out, why bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &why
	if err := m.StartCmd(cmd).Wait(); err != nil {
		return out.String(), fmt.Errorf("%s: %s %s: %w: %s", m.name, name, strings.Join(args, " "), err, strings.TrimSpace(why.String()))
	}
	return out.String(), nil
}

// command prepares what output runs.
func (m *member) command(name string, args ...string) (*exec.Cmd, error) {
	path := name
	env := stack.Environment(m.root)
	switch name {
	case "plenum":
		path = filepath.Join(m.c.binaries, name)
		if len(args) > 0 && args[0] != "probe" {
			args = append(slices.Clone(args), "--root", m.root)
		}
	case "consul", "nomad":
		path = filepath.Join(m.c.binaries, name)
		tokens, err := m.c.tokens()
		if err != nil {
			return nil, err
		}
		env = append(env, "CONSUL_HTTP_TOKEN="+tokens.Consul, "NOMAD_ADDR=https://127.0.0.1:4646", "NOMAD_TLS_SERVER_NAME=localhost",
			"NOMAD_CACERT="+filepath.Join(m.root, "var/lib/plenum/tls/ca.pem"), "NOMAD_TOKEN="+tokens.Nomad)
	}
	cmd := exec.CommandContext(m.c.ctx, path, args...)
	cmd.Env, cmd.Dir = env, m.root
	return cmd, nil
}

// tokens are those of the operator.
func (c *cluster) tokens() (tokens struct{ Consul, Nomad string }, err error) {
	b, err := os.ReadFile(filepath.Join(c.first().root, "var/lib/plenum/join/common.json"))
	if err == nil {
		err = json.Unmarshal(b, &tokens)
	}
	return tokens, err
}

// powerOff ends everything on the host at once, and what is only in memory is gone with it.
func (m *member) powerOff() {
	m.KillAll()
	_, _ = m.Run("sh", "-c", `tac /proc/mounts | cut -d' ' -f2 | grep "^$1/" | xargs -r umount -l; rm -rf /run/*`, "sh", m.root)
}

// boot starts what starts with the host.
func (m *member) boot() error {
	cmd := exec.Command(filepath.Join(m.root, "opt/plenum/bin/plenum"), "run", "agent", "--root", m.root)
	cmd.Env, cmd.Dir = stack.Environment(m.root), m.root
	log, err := os.OpenFile(filepath.Join(m.root, "var/log/plenum/plenum-agent.log"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o640)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	m.StartCmd(cmd)
	return nil
}

// lines prints what a host says, line by line, with its name.
type lines struct {
	m    *member
	rest []byte
}

func (l *lines) Write(b []byte) (int, error) {
	l.rest = append(l.rest, b...)
	for {
		line, rest, ok := bytes.Cut(l.rest, []byte("\n"))
		if !ok {
			return len(b), nil
		}
		l.m.c.write("          %-6s %s\n", l.m.name, line)
		l.rest = rest
	}
}
