"""Facts about where ticket files are served (R22, R23)."""

from hongbao.domain.assignment import AccessPod, Assignment, fail_over, plan_assignment

PODS = [
    AccessPod(1, "access-a-0", "a"),
    AccessPod(2, "access-b-0", "b"),
    AccessPod(3, "access-c-0", "c"),
]
FILES = [(10 * slot + shard, slot, shard) for slot in (1, 2, 3) for shard in range(6)]
ZONE = {pod.pod: pod.zone for pod in PODS}


def test_every_file_has_a_backup_in_another_zone() -> None:
    for place in plan_assignment(FILES, PODS).files.values():
        assert ZONE[place.backup] != ZONE[place.pod]
        assert place.serving == place.pod


def test_a_lost_zone_keeps_its_open_slot_and_gives_its_next_slots_away() -> None:
    before = plan_assignment(FILES, PODS)
    after = fail_over(before, live_pods={1, 3}, unopened_slots={2, 3})
    for file, place in before.files.items():
        if place.pod != 2 or place.slot == 1:
            assert after.files[file] == place
        else:
            assert after.files[file].serving == place.backup != 2


def test_files_of_a_lost_zone_spread_over_all_other_zones() -> None:
    lost = fail_over(plan_assignment(FILES, PODS), {1, 3}, {1, 2, 3})
    assert {p.serving for p in lost.files.values() if p.pod == 2} == {1, 3}


def test_a_healed_zone_gets_its_unopened_files_back() -> None:
    home = plan_assignment(FILES, PODS)
    lost = fail_over(home, {1, 3}, {2, 3})
    healed = fail_over(lost, {1, 2, 3}, {3})
    assert all(healed.files[f] == home.files[f] for f in home.files if home.files[f].slot == 3)
    assert all(healed.files[f] == lost.files[f] for f in home.files if home.files[f].slot == 2)


def test_nothing_moves_when_pod_and_backup_are_both_dead() -> None:
    before = plan_assignment(FILES, PODS)
    assert fail_over(before, set(), {1, 2, 3}) == before


def test_the_document_reads_back_as_it_was_written() -> None:
    assignment = plan_assignment(FILES, PODS)
    assert Assignment.from_json(assignment.to_json()) == assignment
