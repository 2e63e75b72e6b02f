package probe

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"plenum/signaling/client/thin"
)

// errSilent is returned for a bridge that connects and forwards nothing.
var errSilent = errors.New("no sound comes through")

// Bridge has two participants talk by way of a bridge, which it drives by the private HTTP at url. It returns nil
// when each has heard the other.
func Bridge(ctx context.Context, url string) error {
	e, err := thin.New(thin.Config{From: netip.IPv4Unspecified(), CPU: -1})
	if err != nil {
		return err
	}
	running, stop := context.WithCancel(ctx)
	var engine sync.WaitGroup
	engine.Go(func() { e.Run(running) })
	defer engine.Wait()
	defer stop()

	room := e.NewRoom(url, name())
	room.NoChannel = true
	for i, id := range []string{"probe1", "probe2"} {
		what := thin.Publish{Audio: true, Seed: uint64(i)}
		p, err := room.Join(ctx, id, what, thin.View{})
		if err != nil {
			return err
		}
		defer room.Leave(context.WithoutCancel(ctx), id)
		if err := p.Publish(what); err != nil {
			return err
		}
	}
	for {
		switch c := e.Count(); {
		case c.Bad > 0:
			return fmt.Errorf("%d packets are broken", c.Bad)
		case c.Streams == 2 && c.Packets > 10:
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(errSilent, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}
