package agent

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"plenum/agent/host"
	"plenum/agent/join"
)

// Programs that a host runs. Vault is for server hosts.
var programs = []string{"plenum", "consul", "nomad", "vault"}

// A Command is what init, join, leave and the like have in common.
type Command struct {
	Root     string    // folder that stands for /
	Binaries string    // folder with plenum, consul, nomad and vault
	Plan     bool      // say what would be done and stop
	JSON     bool      // -o json
	Out      io.Writer // for people
	Release  string    // of this binary

	live    bool    // Out is a terminal that is drawn again and again
	carried Carried // nil: nobody here knows what hosts carry
}

// say writes a line for people; with -o json it is an object with a text.
func (c *Command) say(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if c.JSON {
		_ = c.json(map[string]string{"text": strings.TrimSpace(text)})
		return
	}
	fmt.Fprintln(c.Out, text)
}

// work opens the host and takes the lock.
func (c *Command) work() (*work, io.Closer, error) {
	if !c.Plan && os.Geteuid() != 0 {
		return nil, nil, errors.New("this changes the host: run it as root, with sudo")
	}
	w, err := newWork(c.Root)
	if err != nil {
		return nil, nil, err
	}
	w.binaries = c.Binaries
	start := time.Now()
	w.hand.say = func(format string, args ...any) {
		c.say("%6.1fs  %s", time.Since(start).Seconds(), fmt.Sprintf(format, args...))
	}
	if c.Plan {
		return w, io.NopCloser(nil), nil
	}
	lock, err := w.host.Lock(lockFile, true)
	if err != nil {
		return nil, nil, err
	}
	if err := w.reload(); err != nil { // the agent may have renewed certificates while this waited for it
		return nil, nil, errors.Join(err, lock.Close())
	}
	return w, lock, nil
}

// printPlan prints what is to be done, and what stands in the way of it. Before it is done a plan of nothing is not
// worth a word.
func (c *Command) printPlan(ctx context.Context, w *work, v view, before ...Step) error {
	d := v.desired()
	o, err := w.observe(ctx, d)
	if err != nil {
		return err
	}
	steps := slices.Concat(before, v.packageSteps(w.host), Plan(d, o))
	if slices.ContainsFunc(steps, func(s Step) bool { return s.service != nil && s.service.Name == "plenum-overlay" && s.act == "start" }) {
		steps = append(steps, v.networkSteps()...)
	}
	if len(steps) == 0 && !c.Plan {
		return nil
	}
	return c.printSteps(steps)
}

// headings of the kinds of steps, as people read them.
var headings = map[string]string{"cluster": "a new cluster", "call": "asked of others"}

// printSteps prints a plan: an array of JSON, or lines under headings.
func (c *Command) printSteps(steps []Step) error {
	switch {
	case c.JSON && c.Plan:
		_, err := c.Out.Write(marshalSteps(steps))
		return err
	case c.JSON:
		return c.json(map[string][]Step{"plan": steps})
	case len(steps) == 0:
		c.say("nothing to do")
	}
	width := 0
	for _, s := range steps {
		width = max(width, len(s.What))
	}
	kind := ""
	for _, s := range steps {
		if s.Kind != kind {
			kind = s.Kind
			c.say("%s", cmp.Or(headings[kind], kind+"s"))
		}
		c.say("  %-*s  %s", width, s.What, s.Why)
	}
	return nil
}

// local are the programs in the folder of the command line, by name, with their digests.
func (c *Command) local(ctx context.Context, names []string) ([]join.Binary, error) {
	var all []join.Binary
	for _, name := range names {
		path := filepath.Join(c.Binaries, name)
		digest, err := sum(path)
		if err != nil {
			return nil, fmt.Errorf("%w; --binaries DIR names a folder with %s", err, strings.Join(names, ", "))
		}
		all = append(all, join.Binary{Name: name, SHA256: digest, Version: programVersion(ctx, name, path, c.Release)})
	}
	return all, nil
}

var versionText = regexp.MustCompile(`v?(\d+\.\d+\.\d+[-+.\w]*)`)

// programVersion asks a program for its version; it is for people.
func programVersion(ctx context.Context, name, path, own string) string {
	if name == "plenum" {
		return own
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, "version")
	cmd.Env = []string{"PATH=/usr/bin:/bin", "HOME=/nonexistent", "CHECKPOINT_DISABLE=1"}
	out, err := cmd.Output()
	line, _ := bufio.NewReader(bytes.NewReader(out)).ReadString('\n')
	if m := versionText.FindStringSubmatch(line); err == nil && m != nil {
		return m[1]
	}
	return "unknown"
}

// choose fills in what neither the command line nor plenum.hcl says.
func (w *work) choose() error {
	if w.cfg.Host == "" {
		w.cfg.Host = strings.ToLower(w.facts.Name)
	}
	if !validHost.MatchString(w.cfg.Host) {
		return fmt.Errorf("%q is no host name of a-z, 0-9 and inner hyphens, at most 40 long; --host NAME gives another", w.cfg.Host)
	}
	return nil
}

var validHost = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$`)

// stable is the host's own address on the underlay.
func stable(cfg Config, f host.Facts) (netip.Addr, error) {
	if cfg.Address != "" {
		return netip.ParseAddr(cfg.Address)
	}
	if len(f.Addresses) == 0 {
		return netip.Addr{}, errors.New("this host has no address but loopback; --address ADDR names one that others reach")
	}
	return f.Addresses[0], nil
}

// factsFor are what the join service is told of this host.
func (w *work) factsFor(release string) join.Facts {
	f := join.Facts{Arch: w.facts.Arch, Release: release, CPUs: w.facts.CPUs, Memory: w.facts.Memory, Uplink: int64(w.cfg.UplinkMbit) * 1_000_000}
	if a, err := netip.ParseAddr(w.cfg.Address); err == nil { // where servers are found
		f.Underlay = append(f.Underlay, netip.AddrPortFrom(a, 51820))
	}
	for _, a := range w.facts.Addresses {
		f.Underlay = append(f.Underlay, netip.AddrPortFrom(a, 51820))
	}
	for _, text := range w.cfg.Public {
		if a, err := netip.ParseAddr(text); err == nil {
			f.Public = append(f.Public, a)
		}
	}
	return f
}

// marshal is JSON of what cannot fail to be.
func marshal(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic("agent: " + err.Error())
	}
	return b
}
