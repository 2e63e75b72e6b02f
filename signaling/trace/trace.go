// Package trace shows one room as its shard and its bridges see it: who is there, on which bridge, what the way to each
// carries, what each gets and why, and what each sends. It reads /debug/rooms/ROOM of each part, which operators alone
// can reach.
package trace

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// ErrNoRoom says that no part knows the room.
var ErrNoRoom = errors.New("no such room")

// maxAnswer bounds what one part may say, in bytes.
const maxAnswer = 32 << 20

// A View is what the parts said of one room.
type View struct {
	Room    string            `json:"room"`
	Shards  []json.RawMessage `json:"shards"`
	Bridges []json.RawMessage `json:"bridges"`
	// Failed are parts that did not answer, with the reason.
	Failed map[string]string `json:"failed,omitempty"`
}

// Fetch asks all parts, whose operators' addresses are URLs. It returns ErrNoRoom when all answer and none has the room.
func Fetch(ctx context.Context, room string, parts []string) (View, error) {
	v := View{Room: room}
	for _, part := range parts {
		b, err := get(ctx, strings.TrimSuffix(part, "/")+"/debug/rooms/"+url.PathEscape(room))
		switch {
		case errors.Is(err, ErrNoRoom):
		case err != nil:
			if v.Failed == nil {
				v.Failed = map[string]string{}
			}
			v.Failed[part] = err.Error()
		default:
			var what struct {
				Bridge *string `json:"bridge"`
			}
			if json.Unmarshal(b, &what) == nil && what.Bridge != nil {
				v.Bridges = append(v.Bridges, b)
			} else {
				v.Shards = append(v.Shards, b)
			}
		}
	}
	if len(v.Shards)+len(v.Bridges)+len(v.Failed) == 0 {
		return v, fmt.Errorf("%s: %w", room, ErrNoRoom)
	}
	return v, nil
}

func get(ctx context.Context, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	r, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer r.Body.Close()
	switch r.StatusCode {
	case http.StatusOK:
	case http.StatusNotFound:
		return nil, ErrNoRoom
	default:
		return nil, fmt.Errorf("%s: %s", url, r.Status)
	}
	b, err := io.ReadAll(io.LimitReader(r.Body, maxAnswer))
	if err == nil && !json.Valid(b) {
		err = fmt.Errorf("%s: no JSON", url)
	}
	return b, err
}

// What shards and bridges say, as far as it is printed.
type (
	shard struct {
		Room struct {
			MeetingID string `json:"meeting_id"`
			Occupants []struct {
				Nick, Role string
			}
		}
		Reason string
		Log    string
		Focus  *struct {
			Participants []participant
			Bridges      []struct {
				JID, Region, Version, Reason string
				Endpoints                    int
			}
		}
	}
	participant struct {
		Nick, Region, Family string
		Session              string
		Bridge               string
		Restarts             int
	}
	bridge struct {
		Bridge, Version string
		Stress          float64
		Conferences     []struct {
			Endpoints map[string]struct {
				Connected, Failed bool
				DataChannel       bool `json:"data_channel"`
				WebSocket         bool `json:"web_socket"`
			}
			Media struct{ Details []endpoint }
		}
	}
	endpoint struct {
		ID                    string
		Active                bool
		PacketsIn, PacketsOut uint64
		Estimate              struct {
			Bitrate, Arriving int64
			Queue, RTT        time.Duration
			Loss, OwnLoss     float64
			Source            string
			Cuts, LossCuts    uint64
			Probes, Found     uint64
		}
		Limit, Taken, Ideal, Beside int64
		Waiting                     int
		PaceDelay                   time.Duration
		Changes                     uint64
		Sources                     []struct {
			Name      string
			Receivers int
			MaxHeight int
			Bitrates  []int64
			Heights   []int
		}
		Forwarded []struct {
			Source           string
			Encoding, Target int
			Layer, Height    int
			Bitrate          int64
			Waiting          bool
			Packets          uint64
		}
	}
)

// Print writes a view for people.
func (v View) Print(w io.Writer) error {
	p := &printer{w: w}
	p.line("room %s", v.Room)
	people := map[string]participant{}
	for _, b := range v.Shards {
		var s shard
		if err := json.Unmarshal(b, &s); err != nil {
			return fmt.Errorf("shard: %w", err)
		}
		p.line("meeting %s, %d in the room; here because: %s; in this shard's log it is %s", s.Room.MeetingID, len(s.Room.Occupants), s.Reason, s.Log)
		if s.Focus == nil {
			continue
		}
		for _, b := range s.Focus.Bridges {
			p.line("on bridge %s (%s) with %d: %s", name(b.JID), known(b.Region, b.Version), b.Endpoints, b.Reason)
		}
		for _, x := range s.Focus.Participants {
			people[x.Nick] = x
			if x.Session != "active" {
				p.line("  %s (%s): session %s, restarts %d", x.Nick, known(x.Region, x.Family), x.Session, x.Restarts)
			}
		}
	}
	for _, raw := range v.Bridges {
		var b bridge
		if err := json.Unmarshal(raw, &b); err != nil {
			return fmt.Errorf("bridge: %w", err)
		}
		p.line("bridge %s (%s), stress %.2f", b.Bridge, b.Version, b.Stress)
		for _, c := range b.Conferences {
			for _, e := range c.Media.Details {
				member := c.Endpoints[e.ID]
				channel := "no channel"
				switch {
				case member.DataChannel:
					channel = "data channel"
				case member.WebSocket:
					channel = "WebSocket"
				}
				state := "connected"
				switch {
				case member.Failed:
					state = "failed"
				case !member.Connected:
					state = "connecting"
				case !e.Active:
					state = "silent"
				}
				x := people[e.ID]
				p.line("  %s: %s, %s, session %s, came by %s", e.ID, state, channel, x.Session, known(x.Region, x.Family))
				p.endpoint(&e)
			}
		}
	}
	for _, part := range slices.Sorted(keys(v.Failed)) {
		p.line("%s does not tell: %s", part, v.Failed[part])
	}
	return p.err
}

// known joins what is known of something.
func known(facts ...string) string {
	facts = slices.DeleteFunc(facts, func(f string) bool { return f == "" })
	return cmp.Or(strings.Join(facts, ", "), "nothing known")
}

// name is the nick of an occupant's address.
func name(jid string) string { return jid[strings.LastIndexByte(jid, '/')+1:] }

func keys(m map[string]string) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

type printer struct {
	w   io.Writer
	err error
}

func (p *printer) line(format string, args ...any) {
	if _, err := fmt.Fprintf(p.w, format+"\n", args...); p.err == nil {
		p.err = err
	}
}

func (p *printer) endpoint(e *endpoint) {
	if s := &e.Estimate; s.Source == "" {
		p.line("    the way to it is not known: it tells nothing of what arrives")
	} else {
		p.line("    the way to it carries %s by %s: RTT %s, queue %s, %.1f %% lost, of it %.1f %% whatever is sent; cut %d times for a queue, %d for loss; %d of %d probes found more",
			rate(s.Bitrate), s.Source, millis(s.RTT), millis(s.Queue), 100*s.Loss, 100*s.OwnLoss, s.Cuts, s.LossCuts, s.Found, s.Probes)
	}
	why := "all that it wants"
	if e.Taken < e.Ideal {
		why = fmt.Sprintf("not the %s that it wants, for want of bandwidth", rate(e.Ideal))
	}
	p.line("    gets video of %s within %s, sound and repeats of %s: %s; %d changes, %d packets wait for up to %s",
		rate(e.Taken), rate(e.Limit), rate(e.Beside), why, e.Changes, e.Waiting, millis(e.PaceDelay))
	for _, f := range e.Forwarded {
		switch {
		case f.Height == 0 && f.Bitrate == 0:
			p.line("      %s, %d packets", f.Source, f.Packets)
		case f.Waiting:
			p.line("      %s waits for a key frame of encoding %d", f.Source, f.Target)
		default:
			p.line("      %s in %d lines, %s, encoding %d, layer %d.%d, %d packets", f.Source, f.Height, rate(f.Bitrate), f.Encoding, f.Layer>>3, f.Layer&7, f.Packets)
		}
	}
	for _, s := range e.Sources {
		var layers []string
		for i, r := range s.Bitrates {
			if i < len(s.Heights) && (s.MaxHeight > 0 || len(s.Bitrates) > 1) {
				layers = append(layers, fmt.Sprintf("%d lines %s", s.Heights[i], rate(r)))
			} else if r > 0 {
				layers = append(layers, rate(r))
			}
		}
		asked := ""
		if s.MaxHeight > 0 {
			asked = fmt.Sprintf(", asked for up to %d lines", s.MaxHeight)
		}
		p.line("    sends %s to %d%s: %s", s.Name, s.Receivers, asked, strings.Join(layers, ", "))
	}
}

func rate(bps int64) string {
	switch {
	case bps == math.MaxInt64:
		return "anything"
	case bps >= 1_000_000:
		return fmt.Sprintf("%.2f Mbit/s", float64(bps)/1e6)
	}
	return fmt.Sprintf("%d kbit/s", bps/1000)
}

func millis(d time.Duration) string { return fmt.Sprintf("%d ms", d.Milliseconds()) }
