package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"plenum/agent/join"
)

// rebootFile says that this host's tasks were moved away for a reboot, and in which boot that was.
const rebootFile = stateDir + "/reboot"

func rebootCommand(release string) *cobra.Command {
	c := &Command{Release: release}
	var force, cancel bool
	cmd := &cobra.Command{Use: "reboot", Short: "Reboot this host, when no other one does and its tasks have moved or ended", Args: cobra.NoArgs,
		Long: `Reboot this host: wait until no other host of the cluster does, move its tasks away or let them end, and go
down. When it is back it takes tasks again by itself. Interrupted, it stays and takes tasks again. Without
systemd it says when the machine may be rebooted.`}
	c.common(cmd, false)
	cmd.Flags().BoolVar(&force, "force", false, "wait for no other host, and for no majority of servers")
	cmd.Flags().BoolVar(&cancel, "cancel", false, "stay: take tasks again")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return c.Reboot(cmd.Context(), force, cancel) }
	return cmd
}

// Reboot does it. The agent goes on meanwhile, for calls may take hours to end.
func (c *Command) Reboot(ctx context.Context, force, cancel bool) error {
	w, lock, err := c.work()
	if err != nil {
		return err
	}
	lock.Close()
	if !w.joined() {
		return errors.New("this host is in no cluster: reboot it as you like")
	}
	if cancel {
		if err := w.stay(ctx); err != nil {
			return err
		}
		c.say("%s stays, and takes tasks", w.answer.Host)
		return nil
	}
	if err := w.drainForReboot(ctx, force); err != nil {
		short, stop := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer stop()
		return errors.Join(err, w.stay(short))
	}
	boot, _ := w.host.Sysctl(bootID)
	if err := w.host.Write(rebootFile, []byte(boot+"\n"), 0o600); err != nil {
		return err
	}
	switch down, err := w.host.Reboot(); {
	case err != nil:
		return errors.Join(err, w.stay(ctx))
	case down:
		c.say("%s goes down; it takes tasks again when it is back", w.answer.Host)
	default:
		c.say("reboot this machine now; %s takes tasks again when it is back (plenum reboot --cancel: at once)", w.answer.Host)
	}
	return nil
}

// bootID is the kernel's name of this boot, among its settings.
const bootID = "kernel.random.boot_id"

// drainForReboot waits for its turn, and until no task runs here.
func (w *work) drainForReboot(ctx context.Context, force bool) error {
	client, r, err := w.client()
	if err != nil {
		return err
	}
	r.Force = force
	said := ""
	for wait := time.Second / 2; ; wait = min(wait*3/2, 10*time.Second) {
		l, err := client.Reboot(ctx, r)
		now := ""
		switch {
		case err == nil && len(l.Tasks) == 0:
			return nil
		case err == nil:
			now = fmt.Sprintf("waiting for %d tasks: %s", len(l.Tasks), strings.Join(l.Tasks, ", "))
		case errors.Is(err, join.Refusal{Reason: join.ReasonBusy}):
			now = "waiting: " + err.Error()
		default:
			return err
		}
		if now != said {
			w.hand.say("%s", now)
			said = now
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(wait):
		}
	}
}

// stay tells the cluster that this host takes tasks.
func (w *work) stay(ctx context.Context) error {
	client, r, err := w.client()
	if err == nil {
		err = client.Back(ctx, r)
	}
	if err != nil {
		return err
	}
	return w.host.Remove(rebootFile)
}

// back ends what a reboot began, in the first look of a new boot that finds the cluster.
func (l *loop) back(ctx context.Context) error {
	w := l.work
	before, err := w.host.Read(rebootFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if now, _ := w.host.Sysctl(bootID); err != nil || strings.TrimSpace(string(before)) == now {
		return err // not yet
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if err := w.stay(ctx); err != nil {
		return fmt.Errorf("this host takes no tasks yet after its reboot: %w", err)
	}
	l.log.Info("takes tasks again after a reboot")
	return nil
}

// downLimit is how long a machine that goes down waits for its tasks; the agent's unit allows a little more.
const downLimit = 100 * time.Second

// down moves tasks away where the whole machine goes down, as far as there is time. An agent that is stopped by itself
// does nothing of the kind.
func (l *loop) down() {
	if !l.work.host.Stopping() {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), downLimit)
	defer cancel()
	boot, _ := l.work.host.Sysctl(bootID)
	err := l.work.host.Write(rebootFile, []byte(boot+"\n"), 0o600)
	if err == nil {
		err = l.work.drainForReboot(ctx, true)
	}
	l.log.Info("the machine goes down", "drained", err == nil, "err", err)
}
