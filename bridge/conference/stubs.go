package conference

import (
	"time"

	"plenum/bridge/allocate"
	"plenum/bridge/packet"
)

type source struct{}
type scratch struct{}

// AddEndpoint adds an endpoint whose media goes to leg. An endpoint with the same id is removed first.
func (c *Conference) AddEndpoint(id EndpointID, leg Leg, caps Capabilities, now time.Time) *Endpoint {
	e := &Endpoint{c: c, id: id, leg: leg, caps: caps}
	c.endpoints[id] = e
	c.order = append(c.order, e)
	return e
}

// Remove takes an endpoint with all its sources out of the conference.
func (c *Conference) Remove(id EndpointID, now time.Time) {}

// Flush fans out what arrived since the last Flush. Buffers lent to ReceiveRTP are free after it.
func (c *Conference) Flush(now time.Time) {}

// Tick does what is due by time alone and returns when it wants to be called again.
func (c *Conference) Tick(now time.Time) (next time.Time) { return now.Add(20 * time.Millisecond) }

// Stats returns the counters and a snapshot of the conference.
func (c *Conference) Stats() Stats { return Stats{} }

// SetConstraints applies what the receiver asks for. Absent fields stay as they were.
func (e *Endpoint) SetConstraints(r allocate.Request, now time.Time) {}

// SetMedia adds payload types and header extensions.
func (e *Endpoint) SetMedia(m Media)                                        {}
func (e *Endpoint) SetSources(s []Source, now time.Time)                    {}
func (e *Endpoint) SetForceMute(audio, video bool, now time.Time)           {}
func (e *Endpoint) SetInitialLastN(n int)                                   {}
func (e *Endpoint) SetVideoType(source, videoType string, now time.Time)    {}
func (e *Endpoint) SetAudioSubscription(s AudioSubscription, now time.Time) {}
func (e *Endpoint) ChannelOpened(now time.Time)                             {}
func (e *Endpoint) Connected(now time.Time)                                 {}
func (e *Endpoint) Heard(now time.Time)                                     {}
func (e *Endpoint) ReceiveRTP(b *packet.Buf, now time.Time)                 {}
func (e *Endpoint) ReceiveRTCP(p []byte, now time.Time)                     {}
