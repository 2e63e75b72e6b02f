package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"plenum/agent/join"
	"plenum/overlay/guard"
)

// Leave hands everything back: work is drained, the cluster forgets the host, and what was made here is removed. What
// plenum did not make is not touched. With force it goes on where the cluster does not answer; another server's
// plenum host revoke then does the rest.
func (c *Command) Leave(ctx context.Context, force bool) error {
	w, lock, err := c.work()
	if err != nil {
		return err
	}
	defer lock.Close()
	if !w.joined() && !w.first {
		return c.remains(ctx, w)
	}
	if c.Plan {
		return c.printRemoval(w)
	}
	if w.is(join.RoleServer) && len(w.answer.Servers) == 1 && !force {
		return errors.New("this is the last server of the cluster: leaving ends it; --force does")
	}
	client, r, err := w.client()
	if err == nil && !force {
		err = w.drain(ctx, client, r)
	}
	if err != nil && !force {
		return fmt.Errorf("%w; --force leaves all the same", err)
	}
	// A client that runs would register again as soon as it was taken out.
	for _, name := range []string{"plenum-agent", "plenum-nomad"} {
		w.hand.say("stop %s", describe(name))
		if err := w.host.Services().Stop(ctx, name); err != nil {
			return err
		}
	}
	w.hand.say("take leave of %s", w.answer.Cluster)
	switch leave := func(ctx context.Context) error { return client.Leave(ctx, r) }; {
	case err != nil:
	case force:
		err = leave(ctx)
	default:
		err = w.persist(ctx, "the servers", election, leave)
	}
	if err != nil && !force && !errors.Is(err, join.Refusal{Reason: join.ReasonUnknown}) && !errors.Is(err, join.Refusal{Reason: join.ReasonRevoked}) {
		return fmt.Errorf("the cluster does not let go: %w; --force leaves all the same", err)
	}
	w.crash("after leave")
	return c.remains(ctx, w)
}

// election is how long servers may have no leader while a host leaves: the one that leaves may have been it.
const election = 30 * time.Second

// drain has the cluster move this host's tasks away and waits until the last has ended. A server stops voting then. A
// host that the cluster does not know any more has nothing to drain.
func (w *work) drain(ctx context.Context, client *join.Client, r join.Request) error {
	w.hand.say("drain: tasks move to other hosts, or end by themselves")
	said, last := time.Time{}, -1
	for wait := time.Second / 2; ; wait = min(wait*3/2, 30*time.Second) {
		var l join.Leaving
		err := w.persist(ctx, "the servers", election, func(ctx context.Context) (err error) {
			l, err = client.Retire(ctx, r)
			return err
		})
		switch {
		case errors.Is(err, join.Refusal{Reason: join.ReasonUnknown}), errors.Is(err, join.Refusal{Reason: join.ReasonRevoked}):
			return nil // an earlier leave was cut short
		case err != nil:
			return fmt.Errorf("the cluster does not drain this host: %w", err)
		case len(l.Tasks) == 0:
			return nil
		}
		if len(l.Tasks) != last || time.Since(said) > 30*time.Second {
			w.hand.say("waiting for %d tasks: %s", len(l.Tasks), strings.Join(l.Tasks, ", "))
			said, last = time.Now(), len(l.Tasks)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("this host takes no new tasks; plenum leave goes on, nomad node drain -disable %s takes it back: %w", l.Node, context.Cause(ctx))
		case <-time.After(wait):
		}
	}
}

// remains removes what is left of plenum on the host; it may be killed and repeated.
func (c *Command) remains(ctx context.Context, w *work) error {
	var all []error
	for _, name := range slices.Backward([]string{"plenum-overlay", "plenum-vault", "plenum-consul", "plenum-nomad", "plenum-agent"}) {
		if s, err := w.host.Services().State(ctx, name); err != nil || s.Running || s.Unit != "" {
			w.hand.say("stop %s", describe(name))
			all = append(all, w.host.Services().Stop(ctx, name))
			w.crash("after stop " + name)
		}
	}
	if err := errors.Join(all...); err != nil {
		return err
	}
	unmountBelow(w.host.Path(stateDir, "nomad"))
	for _, device := range []string{controlDevice, mediaDevice} {
		if link, err := netlink.LinkByName(device); err == nil {
			w.hand.say("remove %s", device)
			if err := netlink.LinkDel(link); err != nil {
				return err
			}
			w.crash("after remove " + device)
		}
	}
	if err := guard.Remove(); err != nil {
		return err
	}
	if err := w.unpack(ctx); err != nil {
		return err
	}
	w.crash("after packages")
	if err := w.restoreSysctls(sysctls); err != nil {
		return err
	}
	for _, path := range made {
		if err := w.host.Remove(path); err != nil {
			return err
		}
		w.crash("after remove " + path)
	}
	for _, dir := range []string{"/etc/plenum", "/opt/plenum", "/run/plenum"} {
		_ = os.Remove(w.host.Path(dir)) // what people put there keeps it
	}
	c.say("nothing of plenum is left here")
	return nil
}

// made is all that plenum makes on a host, the keys last: until they are gone, a killed leave can take leave again.
var made = []string{needrestartFile, upgradesFile, consulFile, nomadFile, vaultFile, configFile, adminDir, binDir, libDir, "/var/log/plenum", "/run/plenum",
	stateDir + "/consul", stateDir + "/nomad", stateDir + "/vault", stateDir}

func (c *Command) printRemoval(w *work) error {
	steps := []Step{{Kind: "call", What: "drain this node", Why: "tasks move or end by themselves"},
		{Kind: "call", What: "take leave of " + w.answer.Cluster, Why: "addresses, certificates, tokens and the catalog's entry go back"}}
	for _, u := range slices.Backward(w.units()) {
		steps = append(steps, Step{Kind: "service", What: "stop and remove " + u.Name, Why: u.Description, Unit: u.Name})
	}
	steps = append(steps, Step{Kind: "interface", What: "remove " + controlDevice + " and " + mediaDevice, Why: "both networks of this host"},
		Step{Kind: "firewall rule", What: "nftables: remove table inet " + guard.Table, Why: "made by plenum, with the unreachable routes"})
	if own, err := w.ownPackages(); err == nil {
		for _, name := range own {
			steps = append(steps, Step{Kind: "package", What: "remove " + name, Why: "installed by plenum"})
		}
	}
	if was, err := w.sysctlsBefore(); err == nil {
		for _, key := range slices.Sorted(maps.Keys(was)) {
			steps = append(steps, Step{Kind: "sysctl", What: "set " + key + " = " + was[key], Why: "what it was, unless somebody has changed it since"})
		}
	}
	for _, path := range made {
		if _, err := os.Lstat(w.host.Path(path)); err == nil {
			steps = append(steps, Step{Kind: "file", What: "remove " + path, Why: "made by plenum"})
		}
	}
	return c.printSteps(steps)
}

// unmountBelow unmounts what Nomad's tasks left mounted, the deepest first.
func unmountBelow(dir string) {
	b, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return
	}
	var all []string
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 1 && strings.HasPrefix(f[1], filepath.Clean(dir)+"/") {
			all = append(all, f[1])
		}
	}
	slices.Sort(all)
	for _, path := range slices.Backward(all) {
		_ = unix.Unmount(path, unix.MNT_DETACH)
	}
}
