package signaling

import (
	"slices"
	"strings"

	"plenum/signaling/muc"
	"plenum/wire/colibri"
	"plenum/wire/jid"
	"plenum/wire/meet"
	"plenum/wire/xmpp"
)

// The breweries of those who serve conferences beside the bridges: recorders, gateways to the telephone.
const (
	nsJibri = "http://jitsi.org/protocol/jibri"

	recorderBrewery = "jibribrewery"
	gatewayBrewery  = "jigasibrewery"
)

// An instance is a Jibri or a Jigasi in its brewery. What it does for conferences is not here yet; operators see it.
type instance struct {
	JID          jid.JID `json:"jid"`       // in the brewery
	Available    bool    `json:"available"` // has said that it takes work
	Healthy      bool    `json:"healthy"`
	Region       string  `json:"region,omitempty"`
	Participants string  `json:"participants,omitempty"` // a gateway's, as it says
}

// instanceEvent keeps the book on the breweries that are not the bridges'.
func (h *hall) instanceEvent(brewery jid.JID, e muc.Event) {
	if l := brewery.Local(); l != recorderBrewery && l != gatewayBrewery || e.Nick == meet.FocusNick {
		return
	}
	who, err := brewery.WithResource(e.Nick)
	if err != nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if e.Kind == muc.Left {
		delete(h.instances, who)
		return
	}
	s := instance{JID: who}
	if old, ok := h.instances[who]; ok {
		s = old
	}
	s.observe(e.Presence)
	h.instances[who] = s
}

// observe takes what a presence says. A service that has said nothing yet takes no work.
func (s *instance) observe(presence *xmpp.Element) {
	if status := presence.Child(nsJibri, "jibri-status"); status != nil {
		said := func(name string) (value string) {
			for c := range status.Children { // in namespaces that differ between versions
				if c.Name == name {
					value = c.Attr("status")
				}
			}
			return value
		}
		s.Healthy = said("health-status") == "healthy"
		s.Available = s.Healthy && said("busy-status") == "idle"
	}
	if stats, err := colibri.ParseStats(presence.Child(colibri.NSStats, "stats")); err == nil {
		s.Healthy = stats.Value("healthy") != "false"
		s.Available = s.Healthy && stats.Value("graceful_shutdown") != "true" && stats.Value("shutdown_in_progress") != "true"
		s.Region, s.Participants = stats.Value("region"), stats.Value("participants")
	}
}

// instancesOf lists those in a brewery, by name.
func (h *hall) instancesOf(brewery string) []instance {
	h.mu.Lock()
	defer h.mu.Unlock()
	all := []instance{}
	for _, s := range h.instances {
		if s.JID.Local() == brewery {
			all = append(all, s)
		}
	}
	slices.SortFunc(all, func(a, b instance) int { return strings.Compare(a.JID.Resource(), b.JID.Resource()) })
	return all
}

// countInstances counts those in a brewery, or the available ones among them.
func (h *hall) countInstances(brewery string, available bool) (n float64) {
	for _, s := range h.instancesOf(brewery) {
		if s.Available || !available {
			n++
		}
	}
	return n
}
