# weir_add_library(folder SOURCES ... [PUBLIC deps...] [PRIVATE deps...])
# The one library of a folder, target weir_<folder>. PUBLIC and PRIVATE are its only edges.
function(weir_add_library folder)
  cmake_parse_arguments(ARG "" "" "SOURCES;PUBLIC;PRIVATE" ${ARGN})
  add_library(weir_${folder} STATIC ${ARG_SOURCES})
  target_link_libraries(weir_${folder} PUBLIC weir_flags ${ARG_PUBLIC} PRIVATE ${ARG_PRIVATE})
endfunction()

# weir_add_test(name SOURCES ... DEPS ... [LABELS unit|slow|gpu ...] [TIMEOUT seconds])
# One GoogleTest binary, one ctest entry. Tests get WEIR_SOURCE_DIR and WEIR_BUILD_DIR as macros and
# WEIR_SHARED_DIR from the environment (default: ../shared beside the repository).
function(weir_add_test name)
  cmake_parse_arguments(ARG "" "TIMEOUT" "SOURCES;DEPS;LABELS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
  target_link_libraries(${name} PRIVATE ${ARG_DEPS} weir_flags GTest::gmock GTest::gtest_main)
  target_compile_definitions(${name} PRIVATE WEIR_SOURCE_DIR="${CMAKE_SOURCE_DIR}"
                                             WEIR_BUILD_DIR="${CMAKE_BINARY_DIR}")
  add_test(NAME ${name} COMMAND ${name})
  if(NOT ARG_LABELS)
    set(ARG_LABELS unit)
  endif()
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 120)
  endif()
  set_tests_properties(${name} PROPERTIES LABELS "${ARG_LABELS}" TIMEOUT ${ARG_TIMEOUT})
endfunction()
