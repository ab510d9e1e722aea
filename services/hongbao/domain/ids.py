"""Owns the identifier types that every plane shares."""

from typing import NewType

CampaignId = NewType("CampaignId", str)  # [a-z0-9-]{1,40}
UserId = NewType("UserId", int)  # 1 ≤ id < 2^63, the session's subject
SponsorIndex = NewType("SponsorIndex", int)  # u16, position of the sponsor in the budget, from 1
SlotNumber = NewType("SlotNumber", int)  # u16, from 1
BatchId = NewType("BatchId", int)  # u16, unique in a campaign over all schemes
KeyId = NewType("KeyId", int)  # 1 ≤ id < 4096, unique in a campaign over all schemes
Serial = NewType("Serial", int)  # u36, unique in a campaign over all schemes: the packet's id
FileIndex = NewType("FileIndex", int)  # u32, unique in a campaign over all schemes
PodId = NewType("PodId", int)  # u16, number of an access process
ShardId = NewType("ShardId", int)  # u16, number of a shard in its plane
Fen = NewType("Fen", int)  # money; never a float
