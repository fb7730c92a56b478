"""Sorting and searching."""
# The plain textbook way to write each of these is the point, not the shortest.
# mypy: ignore-errors
# ruff: noqa: RUF005, SIM110

import bisect
import heapq
import random


def quicksort(arr: list) -> list:
    """Sort a list with quicksort.

    >>> quicksort([3, 1, 2])
    [1, 2, 3]
    """
    if len(arr) <= 1:
        return arr
    pivot = arr[len(arr) // 2]
    left = [x for x in arr if x < pivot]
    middle = [x for x in arr if x == pivot]
    right = [x for x in arr if x > pivot]
    return quicksort(left) + middle + quicksort(right)


def quicksort_v2(arr: list) -> list:
    """Sort a list with quicksort, using the first item as the pivot.

    >>> quicksort_v2([5, 2, 9, 2])
    [2, 2, 5, 9]
    """
    if not arr:
        return []
    pivot = arr[0]
    smaller = [x for x in arr[1:] if x < pivot]
    larger = [x for x in arr[1:] if x >= pivot]
    return quicksort_v2(smaller) + [pivot] + quicksort_v2(larger)


def quicksort_v3(arr: list, low: int = 0, high: int | None = None) -> list:
    """Sort a list in place with quicksort.

    >>> quicksort_v3([4, 1, 3])
    [1, 3, 4]
    """
    if high is None:
        high = len(arr) - 1
    if low < high:
        pivot = arr[high]
        i = low
        for j in range(low, high):
            if arr[j] <= pivot:
                arr[i], arr[j] = arr[j], arr[i]
                i += 1
        arr[i], arr[high] = arr[high], arr[i]
        quicksort_v3(arr, low, i - 1)
        quicksort_v3(arr, i + 1, high)
    return arr


def quicksort_v4(arr: list) -> list:
    """Return a sorted copy of a list, using quicksort with a random pivot.

    >>> quicksort_v4([2, 3, 1])
    [1, 2, 3]
    """
    if len(arr) < 2:
        return list(arr)
    pivot = random.choice(arr)
    less = [x for x in arr if x < pivot]
    equal = [x for x in arr if x == pivot]
    greater = [x for x in arr if x > pivot]
    return quicksort_v4(less) + equal + quicksort_v4(greater)


def partition(arr: list, low: int, high: int) -> int:
    """Partition a list around its last item and return the index of the pivot.

    >>> partition([3, 1, 2], 0, 2)
    1
    """
    pivot = arr[high]
    i = low - 1
    for j in range(low, high):
        if arr[j] <= pivot:
            i += 1
            arr[i], arr[j] = arr[j], arr[i]
    arr[i + 1], arr[high] = arr[high], arr[i + 1]
    return i + 1


def bubble_sort(arr: list) -> list:
    """Sort a list with bubble sort.

    >>> bubble_sort([3, 1, 2])
    [1, 2, 3]
    """
    n = len(arr)
    for i in range(n):
        swapped = False
        for j in range(n - i - 1):
            if arr[j] > arr[j + 1]:
                arr[j], arr[j + 1] = arr[j + 1], arr[j]
                swapped = True
        if not swapped:
            break
    return arr


def bubble_sort_v2(arr: list) -> list:
    """Sort a list with bubble sort.

    >>> bubble_sort_v2([2, 1])
    [1, 2]
    """
    for i in range(len(arr)):
        for j in range(len(arr) - 1 - i):
            if arr[j] > arr[j + 1]:
                arr[j], arr[j + 1] = arr[j + 1], arr[j]
    return arr


def selection_sort(arr: list) -> list:
    """Sort a list with selection sort.

    >>> selection_sort([3, 1, 2])
    [1, 2, 3]
    """
    for i in range(len(arr)):
        smallest = i
        for j in range(i + 1, len(arr)):
            if arr[j] < arr[smallest]:
                smallest = j
        arr[i], arr[smallest] = arr[smallest], arr[i]
    return arr


def insertion_sort(arr: list) -> list:
    """Sort a list with insertion sort.

    >>> insertion_sort([3, 1, 2])
    [1, 2, 3]
    """
    for i in range(1, len(arr)):
        key = arr[i]
        j = i - 1
        while j >= 0 and arr[j] > key:
            arr[j + 1] = arr[j]
            j -= 1
        arr[j + 1] = key
    return arr


def merge_sort(arr: list) -> list:
    """Sort a list with merge sort.

    >>> merge_sort([3, 1, 2])
    [1, 2, 3]
    """
    if len(arr) <= 1:
        return arr
    mid = len(arr) // 2
    left = merge_sort(arr[:mid])
    right = merge_sort(arr[mid:])
    result = []
    i = j = 0
    while i < len(left) and j < len(right):
        if left[i] <= right[j]:
            result.append(left[i])
            i += 1
        else:
            result.append(right[j])
            j += 1
    result.extend(left[i:])
    result.extend(right[j:])
    return result


def merge_sort_v2(arr: list) -> list:
    """Sort a list with merge sort.

    >>> merge_sort_v2([4, 2, 2])
    [2, 2, 4]
    """
    if len(arr) < 2:
        return arr
    mid = len(arr) // 2
    left, right = merge_sort_v2(arr[:mid]), merge_sort_v2(arr[mid:])
    result = []
    while left and right:
        if left[0] <= right[0]:
            result.append(left.pop(0))
        else:
            result.append(right.pop(0))
    return result + left + right


def merge(left: list, right: list) -> list:
    """Merge two sorted lists into one sorted list.

    >>> merge([1, 4], [2, 3])
    [1, 2, 3, 4]
    """
    result = []
    i = j = 0
    while i < len(left) and j < len(right):
        if left[i] <= right[j]:
            result.append(left[i])
            i += 1
        else:
            result.append(right[j])
            j += 1
    return result + left[i:] + right[j:]


def heap_sort(arr: list) -> list:
    """Sort a list with a heap.

    >>> heap_sort([3, 1, 2])
    [1, 2, 3]
    """
    heap = list(arr)
    heapq.heapify(heap)
    return [heapq.heappop(heap) for _ in range(len(heap))]


def heapify(arr: list, n: int, i: int) -> None:
    """Move the item at index i down until the heap property holds."""
    largest = i
    left = 2 * i + 1
    right = 2 * i + 2
    if left < n and arr[left] > arr[largest]:
        largest = left
    if right < n and arr[right] > arr[largest]:
        largest = right
    if largest != i:
        arr[i], arr[largest] = arr[largest], arr[i]
        heapify(arr, n, largest)


def counting_sort(arr: list[int]) -> list[int]:
    """Sort a list of small non-negative integers with counting sort.

    >>> counting_sort([3, 1, 2, 1])
    [1, 1, 2, 3]
    """
    if not arr:
        return []
    counts = [0] * (max(arr) + 1)
    for x in arr:
        counts[x] += 1
    result = []
    for value, count in enumerate(counts):
        result.extend([value] * count)
    return result


def radix_sort(arr: list[int]) -> list[int]:
    """Sort a list of non-negative integers with radix sort.

    >>> radix_sort([170, 45, 75, 2])
    [2, 45, 75, 170]
    """
    if not arr:
        return []
    place = 1
    while max(arr) // place > 0:
        buckets = [[] for _ in range(10)]
        for x in arr:
            buckets[x // place % 10].append(x)
        arr = [x for bucket in buckets for x in bucket]
        place *= 10
    return arr


def shell_sort(arr: list) -> list:
    """Sort a list with Shell sort.

    >>> shell_sort([3, 1, 2])
    [1, 2, 3]
    """
    gap = len(arr) // 2
    while gap > 0:
        for i in range(gap, len(arr)):
            temp = arr[i]
            j = i
            while j >= gap and arr[j - gap] > temp:
                arr[j] = arr[j - gap]
                j -= gap
            arr[j] = temp
        gap //= 2
    return arr


def bucket_sort(arr: list[float]) -> list[float]:
    """Sort numbers between 0 and 1 with bucket sort.

    >>> bucket_sort([0.5, 0.1, 0.9])
    [0.1, 0.5, 0.9]
    """
    n = len(arr)
    buckets = [[] for _ in range(n)]
    for x in arr:
        buckets[int(n * x)].append(x)
    result = []
    for bucket in buckets:
        result.extend(sorted(bucket))
    return result


def is_sorted(arr: list) -> bool:
    """Check whether a list is in ascending order.

    >>> is_sorted([1, 2, 3])
    True
    """
    return all(arr[i] <= arr[i + 1] for i in range(len(arr) - 1))


def is_sorted_v2(arr: list) -> bool:
    """Check whether a list is sorted.

    >>> is_sorted_v2([2, 1])
    False
    """
    for i in range(1, len(arr)):
        if arr[i - 1] > arr[i]:
            return False
    return True


def binary_search(arr: list, target: int) -> int:
    """Find the index of a value in a sorted list, or -1.

    >>> binary_search([1, 3, 5, 7], 5)
    2
    """
    low, high = 0, len(arr) - 1
    while low <= high:
        mid = (low + high) // 2
        if arr[mid] == target:
            return mid
        if arr[mid] < target:
            low = mid + 1
        else:
            high = mid - 1
    return -1


def binary_search_v2(arr: list, target: int, low: int, high: int) -> int:
    """Find the index of a value in a sorted list by recursive binary search.

    >>> binary_search_v2([1, 3, 5, 7], 7, 0, 3)
    3
    """
    if low > high:
        return -1
    mid = (low + high) // 2
    if arr[mid] == target:
        return mid
    elif arr[mid] > target:
        return binary_search_v2(arr, target, low, mid - 1)
    else:
        return binary_search_v2(arr, target, mid + 1, high)


def binary_search_v3(arr: list, target: int) -> int:
    """Find the index of a value in a sorted list, using bisect.

    >>> binary_search_v3([1, 3, 5], 4)
    -1
    """
    i = bisect.bisect_left(arr, target)
    if i < len(arr) and arr[i] == target:
        return i
    return -1


def linear_search(arr: list, target: int) -> int:
    """Find the first index of a value in a list, or -1.

    >>> linear_search([4, 2, 7], 7)
    2
    """
    for i, x in enumerate(arr):
        if x == target:
            return i
    return -1


def linear_search_v2(arr: list, target: int) -> int:
    """Search a list from the start to the end.

    >>> linear_search_v2([4, 2, 7], 5)
    -1
    """
    for i in range(len(arr)):
        if arr[i] == target:
            return i
    return -1


def lower_bound(arr: list, target: int) -> int:
    """Return the first index at which a value could be inserted in a sorted list.

    >>> lower_bound([1, 3, 3, 5], 3)
    1
    """
    low, high = 0, len(arr)
    while low < high:
        mid = (low + high) // 2
        if arr[mid] < target:
            low = mid + 1
        else:
            high = mid
    return low


def kth_smallest(arr: list, k: int) -> int:
    """Return the k-th smallest item of a list.

    >>> kth_smallest([7, 2, 5], 2)
    5
    """
    pivot = arr[len(arr) // 2]
    smaller = [x for x in arr if x < pivot]
    equal = [x for x in arr if x == pivot]
    if k <= len(smaller):
        return kth_smallest(smaller, k)
    if k <= len(smaller) + len(equal):
        return pivot
    return kth_smallest([x for x in arr if x > pivot], k - len(smaller) - len(equal))


def kth_largest(arr: list, k: int) -> int:
    """Return the k-th largest item of a list.

    >>> kth_largest([7, 2, 5], 1)
    7
    """
    return sorted(arr, reverse=True)[k - 1]


def top_k(arr: list, k: int) -> list:
    """Return the k largest items of a list.

    >>> top_k([4, 9, 1, 7], 2)
    [9, 7]
    """
    return heapq.nlargest(k, arr)


def sort_by_length(words: list[str]) -> list[str]:
    """Sort words by their length.

    >>> sort_by_length(["ccc", "a", "bb"])
    ['a', 'bb', 'ccc']
    """
    return sorted(words, key=len)


def sort_by_key(items: list[dict], key: str) -> list[dict]:
    """Sort a list of dictionaries by one of their keys.

    >>> sort_by_key([{"a": 2}, {"a": 1}], "a")
    [{'a': 1}, {'a': 2}]
    """
    return sorted(items, key=lambda item: item[key])


def sort_dict_by_value(data: dict) -> dict:
    """Sort a dictionary by its values, largest first.

    >>> sort_dict_by_value({"a": 1, "b": 2})
    {'b': 2, 'a': 1}
    """
    return dict(sorted(data.items(), key=lambda item: item[1], reverse=True))


def insert_sorted(arr: list, value: int) -> list:
    """Insert a value in a sorted list and keep it sorted.

    >>> insert_sorted([1, 4], 2)
    [1, 2, 4]
    """
    for i, x in enumerate(arr):
        if x > value:
            arr.insert(i, value)
            return arr
    arr.append(value)
    return arr


def merge_sorted_lists(lists: list[list]) -> list:
    """Merge many sorted lists into one.

    >>> merge_sorted_lists([[1, 5], [2], [3, 4]])
    [1, 2, 3, 4, 5]
    """
    heap = [(values[0], i, 0) for i, values in enumerate(lists) if values]
    heapq.heapify(heap)
    result = []
    while heap:
        value, i, j = heapq.heappop(heap)
        result.append(value)
        if j + 1 < len(lists[i]):
            heapq.heappush(heap, (lists[i][j + 1], i, j + 1))
    return result


def shuffle(arr: list) -> list:
    """Shuffle a list in place."""
    for i in range(len(arr) - 1, 0, -1):
        j = random.randint(0, i)
        arr[i], arr[j] = arr[j], arr[i]
    return arr


ALIASES = {
    "quicksort": ("quicksort", "quicksort", "quick_sort", "qsort", "quickSort"),
    "bubble_sort": ("bubble_sort", "bubblesort"),
    "selection_sort": ("selection_sort", "selectionsort"),
    "insertion_sort": ("insertion_sort", "insertionsort"),
    "merge_sort": ("merge_sort", "mergesort"),
    "merge": ("merge", "merge_sorted", "merge_lists", "merge_two_sorted_lists"),
    "heap_sort": ("heap_sort", "heapsort"),
    "binary_search": ("binary_search", "binary_search", "bsearch", "search"),
    "linear_search": ("linear_search", "find_index", "search", "index_of"),
    "kth_smallest": ("kth_smallest", "quickselect", "find_kth_smallest"),
    "top_k": ("top_k", "k_largest", "n_largest"),
}
