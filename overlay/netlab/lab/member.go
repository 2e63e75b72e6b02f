//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"plenum/overlay/netlab/stack"
)

func (m *member) has(role string) bool { return slices.Contains(strings.Split(m.roles, ","), role) }
func (m *member) server() bool         { return m.has("server") }

// names are those of the host's edge: of all edges, and of those of its region.
func (m *member) names() []string { return []string{domain, m.region + "." + domain} }

// url is where participants find the edges of the host's region; without certificates, its own.
func (m *member) url() string {
	if m.c.ca == nil {
		return "http://" + m.Addr().String()
	}
	return "https://" + m.names()[1]
}

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

// plenum runs a command of the binary on the host and tells what it says last, or all of it. If it fails, so does it tell
// what every host has to say.
func (m *member) plenum(args ...string) error { return m.run("plenum", args...) }

// run is plenum for the other programs that output knows.
func (m *member) run(name string, args ...string) error {
	cmd, err := m.command(name, args...)
	if err != nil {
		return err
	}
	out := &lines{m: m}
	cmd.Stdout, cmd.Stderr = out, out
	began := time.Now()
	if err := m.StartCmd(cmd).Wait(); err != nil {
		if m.c.ctx.Err() != nil {
			return context.Cause(m.c.ctx)
		}
		m.c.confess(tasks(args)...)
		return fmt.Errorf("%s: %s %s: %w: %s", m.name, name, strings.Join(args[:min(3, len(args))], " "), err, out.tail())
	}
	said := out.last()
	if name != "plenum" {
		said = strings.Join(slices.Concat([]string{name}, args[:2], []string{filepath.Base(args[len(args)-1])}), " ")
	}
	m.c.say("%-6s %s (%.1f s)", m.name, said, time.Since(began).Seconds())
	return nil
}

// tasks are those of the job that a command is about: none if it is about none.
func tasks(args []string) []string {
	switch kind, _, _ := strings.Cut(filepath.Base(args[len(args)-1]), "."); {
	case args[0] == "edge":
		return []string{"edge.", "haproxy."}
	case args[0] == "shard" || args[0] == "bridge":
		return []string{args[0] + "."}
	case args[0] == "job":
		return []string{kind + "."}
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
		if !slices.Contains([]string{"probe", "room"}, args[0]) { // which know no host
			args = append(slices.Clone(args), "--root", m.root)
		}
		if m.c.ca != nil {
			env = append(env, "SSL_CERT_FILE="+m.c.ca.roots()) // of the probe
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
	if name == "nomad" {
		cmd.Dir = jobFiles() // which name files beside them
	}
	return cmd, nil
}

// web is a client on the host.
func (m *member) web() *http.Client {
	return &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DialContext: m.Dial, DisableKeepAlives: true}}
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

// milestone is a line of plenum init or join that is worth a look by who is in no hurry to read all.
var milestone = regexp.MustCompile(`^ +[0-9.]+s  (start|set up|bootstrap|enrolled)`)

// lines keeps what a command says on a host, and prints it line by line if all of it is wanted.
type lines struct {
	m    *member
	all  []string
	rest []byte
}

func (l *lines) Write(b []byte) (int, error) {
	l.rest = append(l.rest, b...)
	for {
		line, rest, ok := bytes.Cut(l.rest, []byte("\n"))
		if !ok {
			return len(b), nil
		}
		if l.m.c.detail || milestone.Match(line) {
			l.m.c.write("          %-6s %s\n", l.m.name, line)
		}
		l.all = append(l.all, string(line))
		l.rest = rest
	}
}

func (l *lines) tail() string {
	return strings.Join(append(l.all[max(0, len(l.all)-10):], string(l.rest)), "\n")
}

// last is the last line that begins at the margin.
func (l *lines) last() string {
	for _, line := range slices.Backward(l.all) {
		if line != "" && line[0] != ' ' {
			return line
		}
	}
	return ""
}
