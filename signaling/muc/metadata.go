package muc

import (
	"bytes"
	"encoding/json"
	"maps"
	"slices"
	"time"

	"plenum/wire/meet"
	"plenum/wire/xmpp"
)

// reserved are the metadata keys that only the server sets.
var reserved = []string{"allownersEnabled", "asyncTranscription", "audioTranslationRequests", "conferencePresetsServiceEnabled",
	"dialinEnabled", "moderators", "participants", "participantsSoftLimit", "services", "transcriberType", "transcription", "visitorsEnabled"}

// onMetadata takes a moderator's change of one key. Everybody gets the whole object after each change.
func (r *Room) onMetadata(from Sender, st *xmpp.Element) {
	o := r.jids[from.JID]
	change, err := meet.ParseMetadataChange(st.Child(meet.NS, "room_metadata"))
	var data bytes.Buffer
	if o == nil || o.affiliation != Owner || err != nil || slices.Contains(reserved, change.Key) || json.Compact(&data, change.Data) != nil {
		r.refuse(from.JID, st, unavailable) // as Prosody's plugin: without a reason
		return
	}
	if !r.setMetadata(change.Key, data.Bytes()) {
		r.refuse(from.JID, st, tooLarge)
	}
}

// startMuted takes the legacy start-muted policy from a moderator's presence into the metadata. A client
// says it both ways; the second one changes nothing and is not pushed again.
func (r *Room) startMuted(o *occupant) {
	if r.cfg.Metadata.IsZero() || o.affiliation != Owner {
		return
	}
	i := slices.IndexFunc(o.children, func(c *xmpp.Element) bool { return c.Is(meet.NSStartMuted, "startmuted") })
	if i < 0 {
		return
	}
	muted, _ := meet.ParseStartMuted(o.children[i])
	policy, _ := json.Marshal(muted) // two booleans
	if o.muted == string(policy) {
		return // an old presence repeated must not undo what came since
	}
	o.muted = string(policy)
	r.setMetadata("startMuted", policy)
}

// setMetadata changes one key; no data or null removes it. It reports false when the room's metadata
// would be too large.
func (r *Room) setMetadata(key string, data json.RawMessage) bool {
	old, had := r.metadata[key]
	remove := len(data) == 0 || string(data) == "null"
	switch {
	case remove && !had, had && string(old) == string(data):
		return true
	case remove:
		delete(r.metadata, key)
	default:
		r.metadata[key] = data
		size := 0
		for k, v := range r.metadata {
			size += len(k) + len(v)
		}
		if size > r.cfg.MaxMetadataBytes || len(r.metadata) > maxMetadataKeys {
			if delete(r.metadata, key); had {
				r.metadata[key] = old
			}
			return false
		}
	}
	all := r.allMetadata(nil)
	r.send(r.everybody, r.metadataMessage(all))
	r.out.Events = append(r.out.Events, Event{Kind: Metadata, Metadata: all})
	return true
}

// sendMetadata pushes the metadata to one who has just come, with the servers that only joiners get.
func (r *Room) sendMetadata(now time.Time, o *occupant) {
	if r.cfg.Metadata.IsZero() {
		return
	}
	var services json.RawMessage
	if r.cfg.Services != nil {
		services = r.cfg.Services(now)
	}
	m := r.metadataMessage(r.allMetadata(services))
	m.Element.SetAttr("to", o.JID.String())
	r.send(o.self, m)
}

// allMetadata is what the metadata message carries to everybody, or, with services, to a joiner.
func (r *Room) allMetadata(services json.RawMessage) meet.RoomMetadata {
	all := maps.Clone(meet.RoomMetadata(r.metadata))
	if services != nil {
		all["services"] = services
	}
	return all
}

func (r *Room) metadataMessage(all meet.RoomMetadata) *Stanza {
	return &Stanza{Element: xmpp.Message("", "", r.cfg.Metadata.String(), "", all.Message(r.cfg.JID.String()).Element())}
}
