package jobs

import (
	"cmp"
	"context"
)

// Carried is what one host carries just now.
type Carried struct {
	Rooms  int     // of its shards
	People int     // in those
	Media  int     // people whose media its bridge carries
	Mbit   float64 // per second that its bridge sends
	Stress float64 // of its bridge, from 0 to 1
	Drain  string  // draining or drained, of any of them
}

// Carried says what each host carries, by its name.
func (c *Cluster) Carried(ctx context.Context) (map[string]Carried, error) {
	hosts := map[string]Carried{}
	for _, kind := range []string{Shard, Bridge} {
		all, err := c.List(ctx, kind)
		if err != nil {
			return nil, err
		}
		for _, i := range all {
			if i.Host == "" {
				continue
			}
			h := hosts[i.Host]
			if kind == Shard {
				h.Rooms, h.People = h.Rooms+i.Load.Rooms, h.People+i.Load.People
			} else {
				h.Media, h.Mbit, h.Stress = h.Media+i.Load.People, h.Mbit+i.Load.Mbit, max(h.Stress, i.Load.Stress)
			}
			h.Drain = cmp.Or(h.Drain, i.Load.Drain)
			hosts[i.Host] = h
		}
	}
	return hosts, nil
}
